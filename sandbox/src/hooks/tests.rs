use super::*;
use serde_json::{Value, json};

struct Scene {
    dir: tempfile::TempDir,
    state: State,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = serde_json::from_value(json!({
            "ociVersion": "1.2.0", "id": "box", "status": "creating", "bundle": dir.path(),
            "rootfs": "/r", "created": "", "owner": 0, "annotations": { "key": "value" },
            "terminal": false, "monitor": { "pid": 4711, "start_time": 1 }, "exitStatus": null,
        }))
        .unwrap();
        Self { dir, state }
    }

    fn run(&self, point: HookPoint, hooks: Value) -> Result<(), HookError> {
        let hooks: Hooks = serde_json::from_value(hooks).unwrap();
        let outside = Namespace::own().unwrap();
        block_on(run(point, Some(&hooks), &self.state, Some(&outside)))
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).unwrap()
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build();
    runtime.unwrap().block_on(work)
}

fn shell(script: &str) -> Value {
    json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"] })
}

#[test]
fn a_hook_runs_in_the_bundle_with_the_state_and_its_own_environment() {
    let scene = Scene::new();
    let hook = json!({
        "path": "/bin/sh", "env": ["A=1", "B=x=y"],
        "args": ["named", "-c", "cat >state; echo $0 $1 >args; /usr/bin/env >env", "zero", "one"],
    });
    scene
        .run(HookPoint::CreateRuntime, json!({ "createRuntime": [hook] }))
        .unwrap();
    let state: Value = serde_json::from_str(&scene.read("state")).unwrap();
    assert_eq!(
        state,
        json!({
            "ociVersion": "1.2.0", "id": "box", "status": "creating", "pid": 4711,
            "bundle": scene.dir.path(), "annotations": { "key": "value" },
        })
    );
    assert_eq!(scene.read("args"), "zero one\n");
    let env = scene.read("env");
    let mut lines: Vec<_> = env.lines().collect();
    lines.sort();
    // PWD is the shell's own doing.
    lines.retain(|line| !line.starts_with("PWD=") && !line.starts_with("_="));
    assert_eq!(lines, ["A=1", "B=x=y"]);
}

#[test]
fn no_hook_runs_after_the_first_that_fails() {
    let scene = Scene::new();
    let hooks = json!({ "prestart": [
        shell("echo 1 >>log"), shell("echo said; echo why >&2; exit 3"), shell("echo 2 >>log"),
    ] });
    let error = scene.run(HookPoint::Prestart, hooks).unwrap_err();
    assert_eq!(
        error.to_string(),
        "error running prestart hook #1: exit status 3, stdout: said, stderr: why"
    );
    assert_eq!(scene.read("log"), "1\n");
}

#[test]
fn a_hook_that_runs_past_its_timeout_is_killed() {
    let scene = Scene::new();
    let mut hook = shell("exec sleep 60");
    hook["timeout"] = json!(1);
    let error = scene
        .run(HookPoint::Prestart, json!({ "prestart": [hook] }))
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("killed after its timeout of 1 s"),
        "{error}"
    );
}

#[test]
fn a_hook_that_cannot_be_run_is_named() {
    let scene = Scene::new();
    let hooks = json!({ "prestart": [{ "path": "/nonexistent/hook" }] });
    let error = scene.run(HookPoint::Prestart, hooks).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/hook"), "{error}");
}

#[test]
fn all_poststop_hooks_run_and_get_no_pid() {
    let scene = Scene::new();
    let hooks = json!({ "poststop": [shell("exit 1"), shell("cat >state")] });
    let hooks: Hooks = serde_json::from_value(hooks).unwrap();
    block_on(run_and_warn(
        HookPoint::Poststop,
        Some(&hooks),
        &scene.state,
        None,
    ));
    let state: Value = serde_json::from_str(&scene.read("state")).unwrap();
    assert_eq!(
        (&state["status"], state.get("pid")),
        (&json!("stopped"), None)
    );
}
