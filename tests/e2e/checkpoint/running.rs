//! Containers that run on while they are written.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rvm_tests::command::{self, eventually, signal};
use rvm_tests::{Bundle, Rvm};
use serde_json::json;

use super::{end, in_background, machine, save, wait_for_more, world};

/// Memory that cannot be passed over, and a counter.
const FULL: &str = "yes 0123456789abcdef | head -c 30000000 > /dev/shm/full; \
                    i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done";

fn full() -> Bundle {
    Bundle::shell(FULL).mount(json!({
        "destination": "/dev/shm", "type": "tmpfs", "source": "tmpfs", "options": ["size=200m"],
    }))
}

/// Starts a container in the background whose monitor logs to the file `log`.
fn start(rvm: &Rvm, bundle: &Bundle) -> std::path::PathBuf {
    let output = rvm.path("output");
    let mut run = rvm.command(&["--debug", "--log"]);
    run.arg(rvm.path("log"))
        .args(["run", "--detach", "--bundle"]);
    run.arg(bundle.write()).arg("box");
    in_background(run, &output);
    eventually("its memory is full", || {
        fs::metadata(&output).is_ok_and(|output| output.len() > 0)
    });
    output
}

#[test]
fn a_container_that_is_left_running_stands_still_for_a_part_of_the_time() {
    let Some(rvm) = world() else { return };
    let bundle = full();
    let output = start(&rvm, &bundle);
    let begin = Instant::now();
    save(&rvm, "box", &rvm.path("image"), &["--leave-running"]);
    let whole = begin.elapsed();
    let log = fs::read_to_string(rvm.path("log")).unwrap();
    let still = log.split("has stood still for ").nth(1).unwrap();
    let still = still.split(['"', '\n']).next().unwrap();
    let (still, unit) = match still.strip_suffix("ms") {
        Some(number) => (number, 1e3),
        None => (still.strip_suffix('s').unwrap(), 1.0),
    };
    let still = Duration::from_secs_f64(still.parse::<f64>().unwrap() / unit);
    let mib = fs::metadata(rvm.path("image/memory")).unwrap().len() >> 20;
    println!("{mib} MiB: the checkpoint took {whole:?}, the container stood still for {still:?}");
    assert!(mib > 28);
    assert!(still < whole / 2, "{still:?} of {whole:?}");
    wait_for_more(&output, super::numbers(&output).len());
    end(&rvm, "box");
}

/// Waits for the process that writes the machine's memory.
fn writer(rvm: &Rvm) -> i32 {
    let machine = machine(rvm);
    let path = format!("/proc/{machine}/task/{machine}/children");
    let begin = Instant::now();
    loop {
        let children = fs::read_to_string(&path).unwrap();
        if let Some(child) = children.split_whitespace().next() {
            return child.parse().unwrap();
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "nothing writes");
    }
}

fn checkpoint(rvm: &Rvm, image: &Path) -> std::process::Child {
    let path = image.to_str().unwrap();
    let arguments = ["checkpoint", "--leave-running", "--image-path", path, "box"];
    let mut saving = rvm.command(&arguments);
    saving.stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn a_checkpoint_whose_writer_is_killed_fails_and_the_container_runs_on() {
    let Some(rvm) = world() else { return };
    let bundle = full();
    let output = start(&rvm, &bundle);
    let image = rvm.path("image");
    let saving = checkpoint(&rvm, &image);
    let writer = writer(&rvm);
    let score = format!("/proc/{writer}/oom_score_adj");
    eventually("the OOM killer takes the writer first", || {
        fs::read_to_string(&score).map_or(true, |score| score == "1000\n")
    });
    signal(writer, libc::SIGKILL);
    let failed = command::wait(saving);
    let words = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert_eq!(failed.status.code(), Some(1));
    assert!(
        words.contains("writes the guest's memory was killed"),
        "{words}"
    );
    assert_eq!(fs::read_dir(&image).unwrap().count(), 0);
    wait_for_more(&output, super::numbers(&output).len());
    save(&rvm, "box", &image, &["--leave-running"]);
    end(&rvm, "box");
}

#[test]
fn a_machine_that_ends_while_it_is_written_fails_the_checkpoint_and_leaves_nothing() {
    let Some(rvm) = world() else { return };
    let bundle = full();
    for victim in ["machine", "monitor"] {
        start(&rvm, &bundle);
        let image = rvm.path(victim);
        let saving = checkpoint(&rvm, &image);
        let writer = writer(&rvm);
        let pid = match victim {
            "machine" => machine(&rvm),
            _ => rvm.state("box")["pid"].as_i64().unwrap() as i32,
        };
        signal(pid, libc::SIGKILL);
        let failed = command::wait(saving);
        assert_eq!(failed.status.code(), Some(1), "{victim}");
        assert!(!failed.stderr.is_empty());
        assert!(!image.join("checkpoint.json").exists());
        eventually("the writer has ended", || {
            !Path::new(&format!("/proc/{writer}")).exists()
        });
        rvm.ok(&["delete", "--force", "box"]);
        rvm.assert_nothing_left();
    }
}
