//! Checkpoint, and Create with a checkpoint.

use std::fs;
use std::path::Path;

use containerd_shim_protos::api;
use containerd_shim_protos::events::task as events;
use containerd_shim_protos::shim::oci::CheckpointOptions;
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use rvm_tests::Bundle;
use rvm_tests::command::eventually;
use rvm_tests::pod::{KIND, SANDBOX};
use rvm_tests::shim::{Shim, limit};
use serde_json::json;

use super::{WAITS, code, create, delete, kill, last, start, wait};

/// A request to write a checkpoint to a directory, after which the container ends.
fn to(dir: &Path) -> api::CheckpointTaskRequest {
    let options = CheckpointOptions {
        exit: true,
        ..Default::default()
    };
    let options = Any {
        type_url: "containerd.runc.v1.CheckpointOptions".to_owned(),
        value: options.write_to_bytes().unwrap(),
        ..Default::default()
    };
    api::CheckpointTaskRequest {
        id: "box".to_owned(),
        path: dir.display().to_string(),
        options: Some(options).into(),
        ..Default::default()
    }
}

/// A request for a container with this output that goes on from a checkpoint, if one is named.
fn from(bundle: &Bundle, output: &Path, checkpoint: Option<&Path>) -> api::CreateTaskRequest {
    api::CreateTaskRequest {
        id: "box".to_owned(),
        bundle: bundle.write().display().to_string(),
        stdout: format!("file://{}", output.display()),
        checkpoint: checkpoint.map_or(String::new(), |dir| dir.display().to_string()),
        ..Default::default()
    }
}

/// The numbers in a file.
fn numbers(output: &Path) -> Vec<usize> {
    let text = fs::read_to_string(output).unwrap_or_default();
    text.lines().map(|line| line.parse().unwrap()).collect()
}

#[test]
fn a_task_ends_with_its_checkpoint_and_another_goes_on_from_it() {
    if rvm_tests::engine() != "kvm" {
        println!("skipped: checkpoints are the kvm engine's");
        return;
    }
    let bundle = Bundle::shell("i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done");
    let dir = tempfile::tempdir().unwrap();
    let (output, image) = (dir.path().join("output"), dir.path().join("image"));
    let lines = || numbers(&output);
    let shim = Shim::start("box", bundle.write());
    shim.ok(shim.tasks.create(limit(), &from(&bundle, &output, None)));
    start(&shim, "box", "");
    eventually("it counts", || lines().len() > 3);
    shim.ok(shim.tasks.checkpoint(limit(), &to(&image)));
    assert_eq!(wait(&shim, "box", ""), 137);
    delete(&shim, "box", "");
    let topics = ["create", "start", "checkpointed", "exit", "delete"];
    eventually("its end is told", || shim.topics().len() == topics.len());
    assert_eq!(shim.topics(), topics.map(|topic| format!("/tasks/{topic}")));
    assert_eq!(last::<events::TaskExit>(&shim).exit_status, 137);

    let before = lines().len();
    let request = from(&bundle, &output, Some(&image));
    shim.ok(shim.tasks.create(limit(), &request));
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!(lines().len(), before, "it is not started yet");
    start(&shim, "box", "");
    eventually("it goes on", || lines().len() > before + 3);
    let text = lines();
    assert!(text.iter().copied().eq(1..=text.len()), "{text:?}");
    assert_eq!(kill(&shim, "box"), 137);
    delete(&shim, "box", "");
    shim.ok(shim
        .tasks
        .shutdown(limit(), &api::ShutdownRequest::default()));
}

#[test]
fn the_tasks_of_a_pod_go_on_from_the_checkpoint_of_its_first() {
    if rvm_tests::engine() != "kvm" {
        println!("skipped: checkpoints are the kvm engine's");
        return;
    }
    let in_pod = |kind: &str, script: &str| {
        Bundle::shell(script).with(|config| {
            config["annotations"] = json!({ KIND: kind, SANDBOX: "pod" });
        })
    };
    let first = in_pod("sandbox", WAITS);
    let second = in_pod(
        "container",
        "while :; do i=$((i+1)); echo $i; sleep 0.1; done",
    );
    let dir = tempfile::tempdir().unwrap();
    let [nothing, output, image] = ["nothing", "output", "image"].map(|name| dir.path().join(name));
    let lines = || numbers(&output);
    let shim = Shim::start("pod", first.write());
    let create = |id: &str, checkpoint: Option<&Path>| {
        let request = match id {
            "pod" => from(&first, &nothing, checkpoint),
            _ => from(&second, &output, checkpoint),
        };
        let id = id.to_owned();
        shim.ok((shim.tasks).create(limit(), &api::CreateTaskRequest { id, ..request }));
    };
    for id in ["pod", "one"] {
        create(id, None);
        start(&shim, id, "");
    }
    eventually("it counts", || lines().len() > 3);
    let pod = api::CheckpointTaskRequest {
        id: "pod".to_owned(),
        ..to(&image)
    };
    shim.ok(shim.tasks.checkpoint(limit(), &pod));
    for id in ["one", "pod"] {
        assert_eq!(wait(&shim, id, ""), 137);
        delete(&shim, id, "");
    }

    let before = lines().len();
    create("pod", Some(&image));
    start(&shim, "pod", "");
    create("one", Some(&image));
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!(lines().len(), before, "it is not started yet");
    start(&shim, "one", "");
    eventually("it goes on", || lines().len() > before + 3);
    let text = lines();
    assert!(text.iter().copied().eq(1..=text.len()), "{text:?}");
    for id in ["one", "pod"] {
        assert_eq!(kill(&shim, id), 137);
        delete(&shim, id, "");
    }
    shim.ok(shim
        .tasks
        .shutdown(limit(), &api::ShutdownRequest::default()));
}

#[test]
fn what_cannot_be_saved_or_restored_is_refused_by_name() {
    let bundle = Bundle::shell(WAITS);
    let dir = tempfile::tempdir().unwrap();
    let shim = Shim::start("box", bundle.write());
    let refused = |request: &api::CreateTaskRequest| {
        let answer = shim.call(shim.tasks.create(limit(), request));
        (answer.as_ref().unwrap_err().to_string(), code(answer))
    };
    let output = dir.path().join("output");
    let (words, why) = refused(&from(&bundle, &output, Some(dir.path())));
    assert_eq!(why, ttrpc::Code::NOT_FOUND);
    assert!(words.contains("no checkpoint in"), "{words}");
    let with_parent = api::CreateTaskRequest {
        parent_checkpoint: "/parent".to_owned(),
        ..from(&bundle, &output, Some(dir.path()))
    };
    let (words, why) = refused(&with_parent);
    assert_eq!(why, ttrpc::Code::UNIMPLEMENTED);
    assert!(words.contains("parent"), "{words}");

    create(&shim, "box", &bundle);
    let not_running = shim.call(shim.tasks.checkpoint(limit(), &to(dir.path())));
    assert_eq!(code(not_running), ttrpc::Code::FAILED_PRECONDITION);
    start(&shim, "box", "");
    let mut unknown = to(dir.path());
    unknown.options.mut_or_insert_default().type_url = "x.Other".to_owned();
    let unknown = shim.call(shim.tasks.checkpoint(limit(), &unknown));
    assert_eq!(code(unknown), ttrpc::Code::INVALID_ARGUMENT);
    if rvm_tests::engine() == "qemu" {
        let answer = shim.call(shim.tasks.checkpoint(limit(), &to(dir.path())));
        assert_eq!(code(answer), ttrpc::Code::UNIMPLEMENTED);
    }
    assert_eq!(kill(&shim, "box"), 137);
    delete(&shim, "box", "");
    shim.ok(shim
        .tasks
        .shutdown(limit(), &api::ShutdownRequest::default()));
}
