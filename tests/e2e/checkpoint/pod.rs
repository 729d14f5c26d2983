//! A pod: its machine is saved with all of its containers, each of which is restored by its bundle.

use std::path::Path;
use std::process::Command;

use rvm_tests::bundle::bind;
use rvm_tests::command::eventually;
use rvm_tests::pod::{POD, join, member, sandbox};
use rvm_tests::{Bundle, Rvm};

use super::{ROUNDS, end, numbers, restore, save, start, wait_for_more, world};

/// Counts to standard output and into a pipe.
const PRODUCE: &str = "exec 5>/data/pipe; i=0; \
                       while :; do i=$((i+1)); echo $i; echo $i >&5; sleep 0.05; done";

/// Copies the numbers in the pipe to standard output and to a file in the volume.
const CONSUME: &str = "while read n; do echo $n; echo $n >>/data/seen; done </data/pipe";

const MEMBERS: [&str; 2] = ["producer", "consumer"];

/// A pod whose containers share a volume with a pipe.
fn pod(rvm: &Rvm, volume: &Path) -> (Bundle, [Bundle; 2]) {
    let made = Command::new("mkfifo").arg(volume.join("pipe")).status();
    assert!(made.unwrap().success());
    let pod = sandbox(rvm);
    let members = [PRODUCE, CONSUME].map(|script| {
        let member = member(rvm, script, POD);
        member.mount(bind(volume, "/data", &["bind"]))
    });
    (pod, members)
}

fn refused(rvm: &Rvm, arguments: &[&str], words: &str) {
    let finished = rvm.call(arguments);
    assert_ne!(finished.code, 0, "{arguments:?}");
    assert!(finished.stderr.contains(words), "{}", finished.stderr);
}

/// Asserts that these are the numbers from 1 on.
fn assert_whole(numbers: &[u64]) {
    let whole = 1..=numbers.len() as u64;
    assert!(numbers.iter().copied().eq(whole), "{numbers:?}");
}

#[test]
fn a_pod_goes_on_with_its_volume_and_the_pipe_between_its_containers() {
    let Some(rvm) = world() else { return };
    let volume = tempfile::tempdir().unwrap();
    let (sandbox, mut members) = pod(&rvm, volume.path());
    let mut outputs = [0, 1].map(|one| start(&rvm, &members[one], MEMBERS[one]));
    let mut all = [Vec::new(), Vec::new()];
    let image = rvm.path("image");
    for _ in 0..ROUNDS {
        outputs.iter().for_each(|output| wait_for_more(output, 2));
        refused(&rvm, &["checkpoint", "consumer"], "name pod");
        save(&rvm, "pod", &image, &[]);
        assert_eq!(rvm.ok(&["list", "--quiet"]), "", "they are deleted");
        for (all, output) in all.iter_mut().zip(&outputs) {
            all.extend(numbers(output));
            assert_whole(all);
        }
        restore(&rvm, &sandbox, &image, "pod");
        members = members.map(|member| join(&rvm, member, POD));
        outputs = [0, 1].map(|one| restore(&rvm, &members[one], &image, MEMBERS[one]));
    }
    outputs.iter().for_each(|output| wait_for_more(output, 2));
    let listed = rvm.ok(&["exec", "consumer", "ls", "/data"]);
    assert_eq!(listed, "pipe\nseen\n");
    end(&rvm, "producer");
    // It reads to the end of the pipe.
    rvm.wait_for_status("consumer", "stopped");
    rvm.ok(&["delete", "consumer"]);
    end(&rvm, "pod");
    for (all, output) in all.iter_mut().zip(&outputs) {
        all.extend(numbers(output));
        assert_whole(all);
    }
    let seen = numbers(&volume.path().join("seen"));
    assert_eq!(seen, all[1], "what it wrote to the volume");
    rvm.assert_nothing_left();
}

#[test]
fn a_pod_that_is_left_running_goes_on_and_its_checkpoint_waits_for_each_member() {
    let Some(rvm) = world() else { return };
    let volume = tempfile::tempdir().unwrap();
    let (sandbox, members) = pod(&rvm, volume.path());
    let outputs = [0, 1].map(|one| start(&rvm, &members[one], MEMBERS[one]));
    outputs.iter().for_each(|output| wait_for_more(output, 2));
    let image = rvm.path("image");
    save(&rvm, "pod", &image, &["--leave-running"]);
    for output in &outputs {
        wait_for_more(output, numbers(output).len());
    }
    for id in ["producer", "consumer", "pod"] {
        rvm.ok(&["delete", "--force", id]);
    }
    for output in &outputs {
        assert_whole(&numbers(output));
    }

    restore(&rvm, &sandbox, &image, "pod");
    let path = image.to_str().unwrap();
    refused(&rvm, &["checkpoint", "pod"], "waits for others of its pod");
    let [producer, consumer] = members.map(|member| join(&rvm, member, POD));
    let bundle = producer.write().to_str().unwrap();
    let arguments = ["restore", "--image-path", path, "--bundle", bundle, "other"];
    refused(&rvm, &arguments, "no container other in the checkpoint");
    let output = restore(&rvm, &producer, &image, "producer");
    let second = restore(&rvm, &consumer, &image, "consumer");
    for output in [&output, &second] {
        wait_for_more(output, 2);
    }
    for id in ["producer", "consumer", "pod"] {
        rvm.ok(&["delete", "--force", id]);
    }
}

#[test]
fn what_cannot_go_on_with_a_pod_is_refused_by_the_containers_id() {
    let Some(rvm) = world() else { return };
    let volume = tempfile::tempdir().unwrap();
    let (sandbox, [producer, consumer]) = pod(&rvm, volume.path());
    let image = rvm.path("image");
    let path = image.to_str().unwrap();
    rvm.create(&producer, "producer");
    let save_pod = ["checkpoint", "--image-path", path, "pod"];
    refused(&rvm, &save_pod, "container producer of the pod is created");
    rvm.ok(&["delete", "--force", "producer"]);

    let mut piped = rvm.spawn_piped(&consumer, "consumer");
    eventually("a running container", || {
        let state = rvm.call(&["state", "consumer"]);
        state.stdout.contains("\"running\"")
    });
    refused(
        &rvm,
        &save_pod,
        "container consumer of the pod has standard input",
    );
    rvm.ok(&["delete", "--force", "consumer"]);
    piped.wait().unwrap();

    start(&rvm, &consumer, "consumer");
    save(&rvm, "pod", &image, &[]);
    restore(&rvm, &sandbox, &image, "pod");
    let another = tempfile::tempdir().unwrap();
    let consumer = join(&rvm, consumer, POD).with(|config| {
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.last_mut().unwrap()["source"] = another.path().to_str().unwrap().into();
    });
    let bundle = consumer.write().to_str().unwrap();
    let other_volume = [
        "restore",
        "--image-path",
        path,
        "--bundle",
        bundle,
        "consumer",
    ];
    refused(
        &rvm,
        &other_volume,
        "is another directory than in the checkpoint",
    );
    rvm.ok(&["delete", "--force", "pod"]);
    rvm.assert_nothing_left();
}
