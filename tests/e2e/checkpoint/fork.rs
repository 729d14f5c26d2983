//! Copies of a container that runs.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rvm_tests::command::{self, Finished, eventually};
use rvm_tests::{Bundle, Rvm};
use serde_json::json;

use super::{end, in_background, numbers, start, wait_for_more, world, world_for_long};

/// Counts to a file of the root.
const COUNT: &str = "i=0; while :; do i=$((i+1)); echo $i >> /tmp/count; sleep 0.02; done";

/// How many copies are made where time does not matter.
const MANY: usize = 50;

/// How long a copy may take, in a machine in software.
const COPY: Duration = Duration::from_secs(20);

/// Makes copies, whose bundles are in a directory of the world.
fn fork(rvm: &Rvm, ids: &[&str]) -> Finished {
    // The copies keep the streams open.
    let path = rvm.path("said");
    let said = File::create(&path).unwrap();
    let mut forking = forking(rvm, ids);
    forking.stdout(said.try_clone().unwrap()).stderr(said);
    // No less than other commands have.
    let limit = COPY * ids.len().max(12) as u32;
    let ended = command::wait_within(limit, forking.spawn().unwrap());
    Finished {
        code: ended.status.code().unwrap(),
        stdout: String::new(),
        stderr: fs::read_to_string(path).unwrap(),
    }
}

fn forking(rvm: &Rvm, ids: &[&str]) -> Command {
    let mut fork = rvm.command(&["fork", "--bundle"]);
    fork.arg(bundles(rvm)).arg("box").args(ids);
    fork.stdin(Stdio::null());
    fork
}

fn bundles(rvm: &Rvm) -> PathBuf {
    let dir = rvm.path("bundles");
    fs::create_dir_all(&dir).unwrap();
    dir
}

fn count_of(rvm: &Rvm, id: &str) -> PathBuf {
    bundles(rvm).join(id).join("rootfs/tmp/count")
}

fn counts_without_a_gap(path: &Path) -> usize {
    let numbers = numbers(path);
    let whole = numbers.iter().copied().eq(1..=numbers.len() as u64);
    assert!(whole, "{}: {numbers:?}", path.display());
    numbers.len()
}

/// Whether nothing is in the directory of the bundles but these.
fn has_only(rvm: &Rvm, ids: &[&str]) -> bool {
    let found = fs::read_dir(bundles(rvm)).unwrap();
    let found: BTreeSet<_> = found.map(|entry| entry.unwrap().file_name()).collect();
    found == ids.iter().map(Into::into).collect()
}

#[test]
fn copies_go_on_from_one_moment_with_roots_names_and_random_numbers_of_their_own() {
    let Some(rvm) = world() else { return };
    let bundle = Bundle::shell(COUNT);
    fs::hard_link(bundle.rootfs("bin/busybox"), bundle.rootfs("bin/linked")).unwrap();
    start(&rvm, &bundle, "box");
    let first = bundle.rootfs("tmp/count");
    eventually("it counts", || first.exists());
    wait_for_more(&first, 5);
    let ids = ["web0", "web1", "web2"];
    let forked = fork(&rvm, &ids);
    assert_eq!((forked.code, forked.stderr.as_str()), (0, ""));
    assert!(has_only(&rvm, &ids), "no image is left");
    let mut random = BTreeSet::new();
    for id in ids {
        assert_eq!(rvm.status(id), "running");
        let count = count_of(&rvm, id);
        wait_for_more(&count, numbers(&count).len());
        assert!(counts_without_a_gap(&count) > 5, "it has gone on");
        assert_eq!(rvm.ok(&["exec", id, "hostname"]), format!("{id}\n"));
        random.insert(rvm.ok(&["exec", id, "cat", "/proc/sys/kernel/random/uuid"]));
        rvm.ok(&["exec", id, "sh", "-c", &format!("echo {id} > /tmp/mine")]);
        let mine = count.with_file_name("mine");
        assert_eq!(fs::read_to_string(mine).unwrap(), format!("{id}\n"));
        let links = rvm.ok(&["exec", id, "stat", "-c", "%h", "/bin/linked"]);
        assert_eq!(links, "2\n", "the root is a whole copy");
    }
    assert_eq!(random.len(), ids.len());
    wait_for_more(&first, counts_without_a_gap(&first));
    assert!(!bundle.rootfs("tmp/mine").exists());
    ids.iter().for_each(|id| end(&rvm, id));
    end(&rvm, "box");
}

#[test]
fn a_copy_of_a_copy_and_one_of_a_paused_container_run() {
    let Some(rvm) = world() else { return };
    let bundle = Bundle::shell(COUNT);
    start(&rvm, &bundle, "box");
    rvm.ok(&["pause", "box"]);
    assert_eq!(fork(&rvm, &["web0"]).code, 0);
    assert_eq!(rvm.status("box"), "paused");
    let mut forking = rvm.command(&["fork", "--bundle"]);
    forking.arg(bundles(&rvm)).args(["web0", "web1"]);
    in_background(forking, &rvm.path("said"));
    for id in ["web0", "web1"] {
        let count = count_of(&rvm, id);
        wait_for_more(&count, numbers(&count).len());
        counts_without_a_gap(&count);
        end(&rvm, id);
    }
    end(&rvm, "box");
}

#[test]
fn a_read_only_root_is_shared_and_a_bundle_that_is_there_is_used() {
    let Some(rvm) = world() else { return };
    let bundle = Bundle::shell("sleep 1000").with(|config| {
        config["root"]["readonly"] = json!(true);
    });
    start(&rvm, &bundle, "box");
    let prepared = bundles(&rvm).join("web1");
    fs::create_dir(&prepared).unwrap();
    let mut config = bundle.config.clone();
    config["root"]["path"] = json!(bundle.rootfs(""));
    config["hostname"] = json!("prepared");
    config["linux"]["cgroupsPath"] = json!(format!("{}/web1", command::world().unwrap()));
    fs::write(prepared.join("config.json"), config.to_string()).unwrap();
    assert_eq!(fork(&rvm, &["web0", "web1"]).code, 0);
    assert!(!bundles(&rvm).join("web0/rootfs").exists());
    assert_eq!(rvm.ok(&["exec", "web0", "hostname"]), "web0\n");
    assert_eq!(rvm.ok(&["exec", "web1", "hostname"]), "prepared\n");
    for id in ["web0", "web1", "box"] {
        end(&rvm, id);
    }
}

#[test]
fn what_cannot_be_copied_is_refused_before_the_container_stands_still() {
    let Some(rvm) = world() else { return };
    let bundle = Bundle::shell("sleep 1000");
    let refused = |ids: &[&str], words: &str| {
        let refused = fork(&rvm, ids);
        assert_eq!(refused.code, 1, "{ids:?}");
        assert!(
            refused.stderr.contains(words),
            "{ids:?}: {}",
            refused.stderr
        );
        assert!(has_only(&rvm, &[]));
    };
    refused(&["web0"], "does not exist");
    rvm.create(&bundle, "box");
    refused(&["web0"], "created");
    rvm.ok(&["start", "box"]);
    refused(&["web0", "box"], "already exists: box");
    refused(&["web0", "web0"], "already exists: web0");
    refused(&["a/b"], "invalid container ID");
    let nowhere = rvm.call(&["fork", "--bundle", "/nowhere", "box", "web0"]);
    assert!(nowhere.stderr.contains("/nowhere"), "{}", nowhere.stderr);
    assert_eq!(rvm.ok(&["list", "--quiet"]), "box\n");
    end(&rvm, "box");
}

#[test]
fn one_copy_that_cannot_be_started_is_named_and_the_others_run() {
    let Some(rvm) = world() else { return };
    let bundle = Bundle::shell("exec 5</etc/opened; sleep 1000");
    fs::write(bundle.rootfs("etc/opened"), "text").unwrap();
    start(&rvm, &bundle, "box");
    eventually("the file is open", || {
        rvm.ok(&["exec", "box", "ls", "/proc/1/fd"]).contains('5')
    });
    let bad = bundles(&rvm).join("bad");
    fs::create_dir_all(bad.join("rootfs/etc")).unwrap();
    let mut config = bundle.config.clone();
    config["linux"]["cgroupsPath"] = json!(format!("{}/bad", command::world().unwrap()));
    fs::write(bad.join("config.json"), config.to_string()).unwrap();
    let forked = fork(&rvm, &["web0", "bad", "web1"]);
    assert_eq!(forked.code, 1);
    let words = ["bad: ", "etc/opened"];
    let is_named = words.iter().all(|word| forked.stderr.contains(word));
    assert!(is_named, "{}", forked.stderr);
    assert_eq!(rvm.ok(&["list", "--quiet"]), "box\nweb0\nweb1\n");
    assert!(has_only(&rvm, &["bad", "web0", "web1"]));
    for id in ["web0", "web1", "box"] {
        end(&rvm, id);
    }
}

#[test]
fn nothing_is_left_of_a_fork_that_is_killed_and_the_container_runs_on() {
    let Some(rvm) = world() else { return };
    let bundle = Bundle::shell(COUNT);
    let big = vec![b'x'; 64 << 20];
    fs::write(bundle.rootfs("big"), big).unwrap();
    start(&rvm, &bundle, "box");
    let first = bundle.rootfs("tmp/count");
    eventually("it counts", || first.exists());
    let ids = ["web0", "web1"];
    for round in 0..6_u64 {
        let mut forking = forking(&rvm, &ids).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(60 * round));
        forking.kill().unwrap();
        forking.wait().unwrap();
        wait_for_more(&first, counts_without_a_gap(&first));
        // One that was being started is there, as it is if `rvm create` is killed, with its bundle.
        for id in ids {
            rvm.ok(&["delete", "--force", id]);
            let _ = fs::remove_dir_all(bundles(&rvm).join(id));
        }
        eventually("the image is removed", || has_only(&rvm, &[]));
    }
    let last = fork(&rvm, &ids);
    assert_eq!(last.code, 0, "{}", last.stderr);
    for id in ids {
        end(&rvm, id);
    }
    end(&rvm, "box");
}

#[test]
fn a_container_whose_monitor_is_killed_while_copies_are_made_leaves_nothing() {
    let Some(rvm) = world() else { return };
    let bundle = Bundle::shell(COUNT);
    for round in 0..3_u64 {
        start(&rvm, &bundle, "box");
        let monitor = rvm.state("box")["pid"].as_i64().unwrap() as i32;
        let forking = forking(&rvm, &["web0"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(40 * round));
        command::signal(monitor, libc::SIGKILL);
        let forked = command::wait(forking).status.success();
        rvm.ok(&["delete", "--force", "box"]);
        match forked {
            true => end(&rvm, "web0"),
            false => assert!(has_only(&rvm, &[])),
        }
        let _ = fs::remove_dir_all(bundles(&rvm).join("web0"));
        rvm.assert_nothing_left();
    }
}

#[test]
fn many_copies_of_one_image_have_nothing_in_common_that_must_be_their_own() {
    let Some(rvm) = world_for_long() else { return };
    let bundle = Bundle::shell(COUNT);
    start(&rvm, &bundle, "box");
    let ids: Vec<String> = (0..MANY).map(|number| format!("web{number}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let before = available_kib();
    let begin = Instant::now();
    let forked = fork(&rvm, &ids);
    let took = begin.elapsed();
    assert_eq!((forked.code, forked.stderr.as_str()), (0, ""));
    let kib = before.saturating_sub(available_kib());
    println!(
        "{MANY} copies in {took:?}, {} KiB of the host each",
        kib / MANY as u64
    );
    let mut seen = BTreeSet::new();
    for id in &ids {
        let random = "head -c 16 /dev/urandom | md5sum; cat /proc/sys/kernel/random/uuid; hostname";
        seen.extend(
            rvm.ok(&["exec", id, "sh", "-c", random])
                .lines()
                .map(str::to_owned),
        );
    }
    assert_eq!(seen.len(), 3 * MANY);
    ids.iter().for_each(|id| end(&rvm, id));
    end(&rvm, "box");
}

/// What the host has left, see proc_meminfo(5).
fn available_kib() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"));
    let number = line.unwrap().split_whitespace().nth(1).unwrap();
    number.parse().unwrap()
}
