//! Faults at the named points of the shim, through the life of a container.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use containerd_shim_protos::api;
use protobuf::well_known_types::any::Any;
use rvm_tests::shim::Shim;
use rvm_tests::{Bundle, Finished, Rvm};
use serde_json::{Value, json};
use ttrpc::context::{self, Context};

use super::case::{self, LIMIT};
use super::{matrix, points};

/// How many passages of a point in one process are faulted.
const PASSAGES: u32 = 2;

/// What containerd does with the container.
#[derive(Clone, Copy, Debug)]
enum Life {
    Whole,
    /// The shim is killed when the container runs, and its `delete` cleans up.
    GivenUp,
}

/// A shim, and the calls of containerd.
struct Calls {
    shim: Shim,
    bundle: Bundle,
    wrong: Vec<String>,
}

impl Calls {
    /// One call, which may fail, with a message, but not take long.
    fn call<T>(&mut self, name: &str, call: impl Future<Output = ttrpc::Result<T>>) -> bool {
        let start = Instant::now();
        let answer = self.shim.call(call);
        if start.elapsed() > LIMIT {
            self.wrong
                .push(format!("{name} took {:?}", start.elapsed()));
        }
        match answer {
            Ok(_) => true,
            Err(ttrpc::Error::RpcStatus(status)) if status.message().is_empty() => {
                self.wrong.push(format!("{name} failed without a message"));
                false
            }
            Err(_) => false,
        }
    }

    fn create(&mut self) -> bool {
        let tasks = self.shim.tasks.clone();
        let request = api::CreateTaskRequest {
            id: "box".to_owned(),
            bundle: self.bundle.path().display().to_string(),
            ..Default::default()
        };
        self.call("create", tasks.create(limit(), &request))
    }

    fn start(&mut self, exec_id: &str) -> bool {
        let tasks = self.shim.tasks.clone();
        let request = api::StartRequest {
            id: "box".to_owned(),
            exec_id: exec_id.to_owned(),
            ..Default::default()
        };
        self.call("start", tasks.start(limit(), &request))
    }

    /// What is done to a container that runs. Each may fail.
    fn use_it(&mut self) {
        let tasks = self.shim.tasks.clone();
        let process = json!({ "args": ["echo"], "cwd": "/" });
        let exec = api::ExecProcessRequest {
            id: "box".to_owned(),
            exec_id: "one".to_owned(),
            spec: Some(json_any(&process)).into(),
            ..Default::default()
        };
        let (mut pause, mut resume) = (api::PauseRequest::new(), api::ResumeRequest::new());
        let mut update = api::UpdateTaskRequest::new();
        (pause.id, resume.id, update.id) = (id(), id(), id());
        let resources = json!({ "memory": { "limit": 300_000_000 } });
        update.resources = Some(json_any(&resources)).into();
        if self.call("exec", tasks.exec(limit(), &exec)) {
            self.start("one");
        }
        self.call("update", tasks.update(limit(), &update));
        self.call("pause", tasks.pause(limit(), &pause));
        self.call("resume", tasks.resume(limit(), &resume));
    }

    /// Ends the container; false if the shim could not.
    fn end(&mut self) -> bool {
        let tasks = self.shim.tasks.clone();
        let (mut kill, mut wait) = (api::KillRequest::new(), api::WaitRequest::new());
        let mut delete = api::DeleteRequest::new();
        (kill.id, wait.id, delete.id) = (id(), id(), id());
        kill.signal = libc::SIGKILL.unsigned_abs();
        self.call("kill", tasks.kill(limit(), &kill))
            && self.call("wait", tasks.wait(limit(), &wait))
            && self.call("delete", tasks.delete(limit(), &delete))
            && self.call(
                "shutdown",
                tasks.shutdown(limit(), &api::ShutdownRequest::new()),
            )
    }

    /// Has the shim killed, and what it leaves removed; the second time without a fault.
    fn give_up(&mut self) {
        let first = self.shim.give_up(self.bundle.path());
        self.shim.world().set_variable("RVM_FAULTS", None);
        let again = self.shim.give_up(self.bundle.path());
        self.wrong.extend(judge(&first, &again));
    }
}

/// What is wrong with two cleanings up.
fn judge(first: &Finished, again: &Finished) -> Option<String> {
    let is_told = first.code <= 0 || !first.stderr.is_empty();
    let is_fine = is_told && again.code == 0 && !first.stderr.contains("panicked");
    (!is_fine).then(|| format!("delete: {first:?}, then {again:?}"))
}

fn id() -> String {
    "box".to_owned()
}

fn limit() -> Context {
    context::with_duration(LIMIT)
}

fn json_any(value: &Value) -> Any {
    Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".to_owned(),
        value: value.to_string().into_bytes(),
        ..Default::default()
    }
}

/// Leads a container through its life; returns what is wrong.
fn live(world: Rvm, life: Life) -> Vec<String> {
    let bundle = Bundle::new(&["sleep", "1000"]);
    bundle.write();
    let shim = match Shim::try_start_in(world, "box", bundle.path()) {
        Ok(shim) => shim,
        Err(unstarted) => {
            let first = unstarted.clean_up(bundle.path());
            unstarted.world.set_variable("RVM_FAULTS", None);
            let again = unstarted.clean_up(bundle.path());
            return judge(&first, &again).into_iter().collect();
        }
    };
    let mut calls = Calls {
        shim,
        bundle,
        wrong: Vec::new(),
    };
    let is_created = calls.create();
    if is_created && calls.start("") {
        match life {
            Life::Whole => calls.use_it(),
            Life::GivenUp => {}
        }
    }
    if matches!(life, Life::GivenUp) || !is_created || !calls.end() {
        calls.give_up();
    }
    calls.wrong
}

/// Runs a life with a variable in the environment of all programs; returns what is wrong.
fn case(life: Life, name: &'static str, value: &str) -> Vec<String> {
    let Some(world) = case::played() else {
        return Vec::new();
    };
    world.set_variable(name, Some(value));
    // What is left fails the drop of the world.
    match catch_unwind(AssertUnwindSafe(|| live(world, life))) {
        Ok(wrong) => wrong,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            vec![text.unwrap_or_else(|| "a panic of the test".to_owned())]
        }
    }
}

/// How often the points are passed, by `ROLE@POINT`.
fn passed(life: Life) -> BTreeMap<String, u32> {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("points");
    let wrong = case(life, "RVM_FAULTS_LOG", log.to_str().unwrap());
    assert!(wrong.is_empty(), "{life:?}: {wrong:#?}");
    let mut passed = BTreeMap::new();
    for line in fs::read_to_string(&log).unwrap_or_default().lines() {
        *passed.entry(line.to_owned()).or_default() += 1;
    }
    passed
}

#[test]
fn a_shim_that_dies_or_fails_or_waits_at_a_point_leaves_nothing() {
    if !points::has_points() || case::played().is_none() {
        return;
    }
    let (mut cases, mut seen) = (Vec::new(), BTreeSet::new());
    for life in [Life::Whole, Life::GivenUp] {
        for (place, count) in passed(life) {
            seen.insert(place.split('@').nth(1).unwrap_or_default().to_owned());
            for passage in 1..=count.min(PASSAGES) {
                let rules = points::ACTIONS.map(|action| format!("{place}#{passage}={action}"));
                cases.extend(rules.map(|rule| (life, rule)));
            }
        }
    }
    assert_eq!(
        points::listed("shim").difference(&seen).next(),
        None,
        "never passed"
    );
    matrix::run_each(
        "shim",
        cases,
        || Some(()),
        |(), (life, rule)| {
            let wrong = case(*life, "RVM_FAULTS", rule);
            let line = format!("shim, {life:?}, {rule}: {}", wrong.join("; "));
            (Some(()), (!wrong.is_empty()).then_some(line))
        },
    );
}
