//! Checkpoints: a container with its machine is written to files, and goes on from them.

#[path = "checkpoint/disks.rs"]
mod disks;
#[path = "checkpoint/files.rs"]
mod files;
#[path = "checkpoint/fork.rs"]
mod fork;
#[path = "checkpoint/input.rs"]
mod input;
#[path = "checkpoint/many.rs"]
mod many;
#[path = "checkpoint/network.rs"]
mod network;
#[path = "checkpoint/pod.rs"]
mod pod;
#[path = "checkpoint/programs.rs"]
mod programs;
#[path = "checkpoint/running.rs"]
mod running;
#[path = "checkpoint/size.rs"]
mod size;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rvm_tests::command::{self, eventually, signal};
use rvm_tests::{Bundle, Rvm, terminal};
use serde_json::json;

/// Counts to standard output and to a file that has no name any more.
const COUNT: &str = "exec 5>/tmp/kept; rm /tmp/kept; i=0; \
                     while :; do i=$((i+1)); echo $i; echo $i >&5; sleep 0.05; done";

/// How often one container is saved and restored.
const ROUNDS: usize = 3;

/// The same where time does not matter.
const LONG_ROUNDS: usize = 100;

/// A world whose engine has checkpoints; none elsewhere.
fn world() -> Option<Rvm> {
    if rvm_tests::engine() != "kvm" {
        println!("skipped: the engine has no checkpoints");
        return None;
    }
    Some(Rvm::new())
}

/// The same for what takes minutes.
fn world_for_long() -> Option<Rvm> {
    let rvm = world()?;
    if !rvm_tests::long() {
        println!("skipped: RVM_TEST_LONG is not set");
        return None;
    }
    Some(rvm)
}

/// Starts a container in the background, whose output goes to a file.
fn start(rvm: &Rvm, bundle: &Bundle, id: &str) -> PathBuf {
    let output = rvm.path(&format!("{id}.output"));
    let mut run = rvm.command(&["run", "--detach", "--bundle"]);
    run.arg(bundle.write()).arg(id);
    in_background(run, &output);
    output
}

/// Lets a container go on in the background.
fn restore(rvm: &Rvm, bundle: &Bundle, image: &Path, id: &str) -> PathBuf {
    let output = rvm.path(&format!("{id}.restored"));
    let mut restore = rvm.command(&["restore", "--detach", "--image-path"]);
    restore
        .arg(image)
        .arg("--bundle")
        .arg(bundle.write())
        .arg(id);
    in_background(restore, &output);
    output
}

fn in_background(mut command: Command, output: &Path) {
    let file = File::create(output).unwrap();
    command
        .stdin(Stdio::null())
        .stdout(file.try_clone().unwrap());
    let output = command::wait(command.stderr(file.try_clone().unwrap()).spawn().unwrap());
    let said = || fs::read_to_string(format!("/proc/self/fd/{}", fd(&file))).unwrap_or_default();
    assert!(output.status.success(), "{}", said());
}

fn fd(file: &File) -> i32 {
    std::os::fd::AsRawFd::as_raw_fd(file)
}

fn save(rvm: &Rvm, id: &str, image: &Path, more: &[&str]) {
    let arguments = ["checkpoint", "--image-path", image.to_str().unwrap()];
    rvm.ok(&[&arguments, more, &[id]].concat());
}

/// The numbers in a file, the last of which may be half written.
fn numbers(path: &Path) -> Vec<u64> {
    let text = fs::read_to_string(path).unwrap();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let number = |line: &str| line.parse().unwrap_or_else(|_| panic!("{text}"));
    whole.lines().map(number).collect()
}

fn wait_for_more(path: &Path, than: usize) {
    let what = format!("{} lines in {}", than + 1, path.display());
    eventually(&what, || numbers(path).len() > than);
}

fn end(rvm: &Rvm, id: &str) {
    rvm.ok(&["kill", id, "KILL"]);
    rvm.wait_for_status(id, "stopped");
    rvm.ok(&["delete", id]);
}

#[test]
fn a_container_goes_on_where_it_was_and_nothing_that_it_writes_is_lost_or_doubled() {
    let Some(rvm) = world() else { return };
    let bundle = Bundle::shell(COUNT);
    let rounds = if rvm_tests::long() {
        LONG_ROUNDS
    } else {
        ROUNDS
    };
    let (output, before) = count_through(&rvm, &bundle, rounds);
    wait_for_more(&output, 0);
    let kept = rvm.ok(&["exec", "box", "tail", "-n", "1", "/proc/1/fd/5"]);
    let kept: usize = kept.trim().parse().unwrap();
    assert!(kept > before, "the file without a name went on: {kept}");
    end(&rvm, "box");
}

/// Saves and restores a container that counts to its standard output, some times. Returns where the
/// last one writes to, and how many numbers came before that.
fn count_through(rvm: &Rvm, bundle: &Bundle, rounds: usize) -> (PathBuf, usize) {
    let image = rvm.path("image");
    let mut output = start(rvm, bundle, "box");
    let mut all = Vec::new();
    for round in 0..rounds {
        wait_for_more(&output, 0);
        save(rvm, "box", &image, &[]);
        let code = rvm.call(&["state", "box"]).code;
        assert_ne!(code, 0, "it is deleted, as with runc");
        all.extend(numbers(&output));
        assert!(
            all.iter().copied().eq(1..=all.len() as u64),
            "round {round}: {all:?}"
        );
        output = restore(rvm, bundle, &image, "box");
        assert_eq!(rvm.status("box"), "running");
    }
    (output, all.len())
}

#[test]
fn a_flood_of_output_arrives_whole_whoever_reads_it() {
    let Some(rvm) = world() else { return };
    const LINES: usize = 400_000;
    let bundle = Bundle::shell(&format!("seq {LINES}; sleep 1000"));
    let image = rvm.path("image");
    let mut output = start(&rvm, &bundle, "box");
    let mut text = Vec::new();
    for _ in 0..ROUNDS {
        eventually("some output", || fs::metadata(&output).unwrap().len() > 0);
        save(&rvm, "box", &image, &[]);
        text.extend(fs::read(&output).unwrap());
        output = restore(&rvm, &bundle, &image, "box");
    }
    let expected: String = (1..=LINES).map(|number| format!("{number}\n")).collect();
    eventually("the rest", || {
        text.len() + fs::read(&output).unwrap().len() >= expected.len()
    });
    text.extend(fs::read(&output).unwrap());
    assert!(text == expected.as_bytes(), "{} bytes", text.len());
    end(&rvm, "box");
}

#[test]
fn a_container_that_is_left_running_goes_on_and_so_do_any_number_of_others() {
    let Some(rvm) = world() else { return };
    let bundle = Bundle::shell(COUNT);
    let image = rvm.path("image");
    let first = start(&rvm, &bundle, "box");
    wait_for_more(&first, 2);
    save(&rvm, "box", &image, &["--leave-running"]);
    wait_for_more(&first, numbers(&first).len());
    assert_eq!(rvm.status("box"), "running");
    let mode = fs::metadata(image.join("memory")).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);

    let bundles: Vec<_> = (0..3).map(|number| fork_of(&bundle, number)).collect();
    let mut uuids = std::collections::BTreeSet::new();
    let mut outputs = Vec::new();
    for (number, bundle) in bundles.iter().enumerate() {
        let id = format!("fork{number}");
        outputs.push(restore(&rvm, bundle, &image, &id));
        assert_eq!(rvm.ok(&["exec", &id, "hostname"]), format!("{id}\n"));
        uuids.insert(rvm.ok(&["exec", &id, "cat", "/proc/sys/kernel/random/uuid"]));
        rvm.ok(&["exec", &id, "sh", "-c", &format!("echo {id} > /tmp/mine")]);
    }
    assert_eq!(
        uuids.len(),
        bundles.len(),
        "each has random numbers of its own"
    );
    for (number, bundle) in bundles.iter().enumerate() {
        let mine = fs::read_to_string(bundle.rootfs("tmp/mine")).unwrap();
        assert_eq!(mine, format!("fork{number}\n"), "each has files of its own");
        wait_for_more(&outputs[number], 0);
        let begins = numbers(&outputs[number])[0];
        assert!(begins > 2, "it went on: {begins}");
        end(&rvm, &format!("fork{number}"));
    }
    assert!(!bundle.rootfs("tmp/mine").exists());
    end(&rvm, "box");
}

/// The bundle with a copy of its files and a host name of its own.
fn fork_of(bundle: &Bundle, number: usize) -> Bundle {
    let copy = Bundle::shell(COUNT).with(|config| {
        *config = bundle.config.clone();
        config["hostname"] = json!(format!("fork{number}"));
    });
    let mut copying = Command::new("cp");
    copying
        .arg("-aT")
        .arg(bundle.rootfs(""))
        .arg(copy.rootfs(""));
    assert!(copying.status().unwrap().success());
    copy
}

#[test]
fn a_container_of_another_id_can_do_whatever_one_can() {
    let Some(rvm) = world() else { return };
    let bundle = Bundle::shell(COUNT);
    let (first, second) = (rvm.path("first"), rvm.path("second"));
    start(&rvm, &bundle, "box");
    save(&rvm, "box", &first, &[]);
    restore(&rvm, &bundle, &first, "other");
    rvm.ok(&["pause", "other"]);
    save(&rvm, "other", &second, &[]);
    let output = restore(&rvm, &bundle, &second, "third");
    // Engines pause what they save, and expect that it runs when it is restored.
    assert_eq!(rvm.status("third"), "running");
    wait_for_more(&output, 0);
    rvm.ok(&["update", "--pids-limit", "50", "third"]);
    assert!(rvm.ok(&["ps", "third"]).contains("tmp/kept"));
    assert_eq!(rvm.call(&["exec", "third", "sh", "-c", "exit 5"]).code, 5);
    assert!(
        rvm.ok(&["events", "--stats", "third"])
            .contains("\"third\"")
    );
    end(&rvm, "third");
}

/// Waits for a container that another process makes.
fn wait_until_running(rvm: &Rvm) {
    eventually("a running container", || {
        let state = rvm.call(&["state", "box"]);
        state.stdout.contains("\"running\"")
    });
}

#[test]
fn a_foreground_container_that_is_saved_ends_as_if_killed() {
    let Some(rvm) = world() else { return };
    let bundle = Bundle::shell("sleep 1000");
    let child = rvm.spawn_piped(&bundle, "box");
    wait_until_running(&rvm);
    save(&rvm, "box", &rvm.path("image"), &[]);
    assert_eq!(command::wait(child).status.code(), Some(137));
}

#[test]
fn a_shell_goes_on_at_another_terminal() {
    let Some(rvm) = world() else { return };
    let bundle = Bundle::new(&["sh"]).with(|config| config["process"]["terminal"] = json!(true));
    let image = rvm.path("image");
    let on_terminal = |arguments: &[&str]| {
        let (terminal, line) = terminal::open(30, 100);
        let mut command = rvm.command(arguments);
        line.attach(&mut command);
        (command.spawn().unwrap(), terminal, line)
    };
    let path = bundle.write().to_str().unwrap();
    let (first, mut shell, _line) = on_terminal(&["run", "--bundle", path, "box"]);
    wait_until_running(&rvm);
    shell.write("secret=hidden; echo here-$((6*7))\n");
    shell.expect("here-42");
    save(&rvm, "box", &image, &[]);
    command::wait(first);
    let image = image.to_str().unwrap();
    let arguments = ["restore", "--image-path", image, "--bundle", path, "box"];
    let (second, mut shell, _line) = on_terminal(&arguments);
    shell.write("echo it-is-$secret; stty size\n");
    shell.expect("it-is-hidden");
    shell.expect("30 100");
    shell.write("exit 3\n");
    assert_eq!(command::wait(second).status.code(), Some(3));
}

#[test]
fn what_cannot_be_saved_or_restored_is_refused_with_the_reason() {
    let Some(rvm) = world() else { return };
    let bundle = Bundle::shell("sleep 1000");
    let image = rvm.path("image");
    let path = image.to_str().unwrap();
    let refused = |arguments: &[&str], words: &str| {
        let finished = rvm.call(arguments);
        assert_ne!(finished.code, 0, "{arguments:?}");
        assert!(
            finished.stderr.contains(words),
            "{arguments:?}: {}",
            finished.stderr
        );
    };
    refused(&["checkpoint", "box"], "does not exist");
    for option in ["--pre-dump", "--lazy-pages"] {
        refused(&["checkpoint", option, "box"], option);
    }
    rvm.create(&bundle, "box");
    refused(&["checkpoint", "box"], "created");
    rvm.ok(&["start", "box"]);
    refused(
        &["checkpoint", "--image-path", "/proc/none", "box"],
        "/proc/none",
    );
    assert_eq!(rvm.status("box"), "running", "it goes on");
    save(&rvm, "box", &image, &[]);

    let bundle = bundle.write().to_str().unwrap();
    let restore = ["restore", "--bundle", bundle, "--image-path"];
    let restore = |image| [&restore[..], &[image, "box"]].concat();
    refused(&restore("/nowhere"), "no checkpoint in /nowhere");
    for (file, byte, words) in [
        ("state", 20, "damaged"),
        ("checkpoint.json", 1, "checkpoint.json"),
    ] {
        let file = File::options()
            .read(true)
            .write(true)
            .open(image.join(file))
            .unwrap();
        let mut before = [0];
        file.read_exact_at(&mut before, byte).unwrap();
        file.write_all_at(&[before[0] ^ 0x15], byte).unwrap();
        refused(&restore(path), words);
        file.write_all_at(&before, byte).unwrap();
    }
    let memory = File::options()
        .write(true)
        .open(image.join("memory"))
        .unwrap();
    memory.set_len(4096).unwrap();
    refused(&restore(path), "memory's file has 4096 bytes");
    assert_eq!(rvm.ok(&["list", "--quiet"]), "");
}

#[test]
fn a_file_that_a_program_has_open_and_that_has_vanished_is_named() {
    let Some(rvm) = world() else { return };
    let bundle = Bundle::shell("exec 5</etc/opened; sleep 1000");
    fs::write(bundle.rootfs("etc/opened"), "text").unwrap();
    let image = rvm.path("image");
    start(&rvm, &bundle, "box");
    eventually("the file is open", || {
        rvm.ok(&["exec", "box", "ls", "/proc/1/fd"]).contains('5')
    });
    save(&rvm, "box", &image, &[]);
    fs::remove_file(bundle.rootfs("etc/opened")).unwrap();
    let mut restore = rvm.command(&["restore", "--image-path"]);
    restore
        .arg(&image)
        .arg("--bundle")
        .arg(bundle.path())
        .arg("box");
    let finished = command::finish(restore);
    assert_ne!(finished.code, 0);
    assert!(
        finished.stderr.contains("etc/opened"),
        "{}",
        finished.stderr
    );
}

#[test]
fn nothing_is_left_of_a_checkpoint_whose_machine_or_monitor_is_killed() {
    let Some(rvm) = world() else { return };
    let bundle = Bundle::shell(COUNT);
    for round in 0..4_u64 {
        let image = rvm.path(&format!("image{round}"));
        start(&rvm, &bundle, "box");
        let victim = match round % 2 {
            0 => rvm.state("box")["pid"].as_i64().unwrap() as i32,
            _ => machine(&rvm),
        };
        let path = image.to_str().unwrap();
        let saving = rvm
            .command(&["checkpoint", "--image-path", path, "box"])
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(60 * round));
        signal(victim, libc::SIGKILL);
        let saved = command::wait(saving).status.success();
        let restored = rvm.call(&["delete", "--force", "box"]);
        assert_eq!(restored.code, 0, "{}", restored.stderr);
        match saved {
            true => {
                restore(&rvm, &bundle, &image, "box");
                end(&rvm, "box");
            }
            false => assert!(!image.join("checkpoint.json").exists()),
        }
        rvm.assert_nothing_left();
    }
}

#[test]
fn nothing_is_left_of_a_restore_that_is_killed_and_the_checkpoint_is_as_good_as_before() {
    let Some(rvm) = world() else { return };
    let bundle = Bundle::shell(COUNT);
    let image = rvm.path("image");
    start(&rvm, &bundle, "box");
    save(&rvm, "box", &image, &[]);
    for round in 0..6_u64 {
        let mut restore = rvm.command(&["restore", "--image-path"]);
        restore
            .arg(&image)
            .arg("--bundle")
            .arg(bundle.write())
            .arg("box");
        let mut restoring = restore.stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(80 * round));
        // This process stands for the container, and its machine ends with it.
        restoring.kill().unwrap();
        restoring.wait().unwrap();
        rvm.call(&["delete", "--force", "box"]);
        rvm.assert_nothing_left();
    }
    let output = restore(&rvm, &bundle, &image, "box");
    wait_for_more(&output, 0);
    end(&rvm, "box");
}

/// The pid of the only machine's rvm-vmm.
fn machine(rvm: &Rvm) -> i32 {
    let record = fs::read_to_string(rvm.root().join("box/sandbox.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    record["machine"][0]["pid"].as_i64().unwrap() as i32
}

#[test]
fn the_engine_without_checkpoints_says_so() {
    if rvm_tests::engine() == "kvm" {
        return;
    }
    let rvm = Rvm::new();
    let bundle = Bundle::shell("sleep 1000");
    start(&rvm, &bundle, "box");
    let image = rvm.path("image");
    let image = image.to_str().unwrap();
    let dir = rvm.path("");
    for arguments in [
        ["checkpoint", "--image-path", image, "box"],
        ["fork", "--bundle", dir.to_str().unwrap(), "box"],
    ] {
        let new = ["web0"].into_iter().filter(|_| arguments[0] == "fork");
        let finished = rvm.call(&arguments.into_iter().chain(new).collect::<Vec<_>>());
        assert_ne!(finished.code, 0);
        let words = &finished.stderr;
        assert!(words.contains("the kvm engine can"), "{words}");
    }
    assert!(!rvm.path("web0").exists());
    assert_eq!(rvm.status("box"), "running");
    assert!(!rvm.path("image").join("memory").exists());
    end(&rvm, "box");
}
