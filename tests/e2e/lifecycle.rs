//! The life of a container, through the verbs.

use std::fs;

use rvm_tests::command::{self, eventually};
use rvm_tests::{Bundle, Rvm};
use serde_json::json;

#[test]
fn a_program_runs_and_its_output_and_exit_code_arrive() {
    let rvm = Rvm::new();
    let finished = rvm.run(&Bundle::shell("echo out; echo err >&2; exit 7"), "box");
    assert_eq!((finished.code, finished.stdout.as_str()), (7, "out\n"));
    assert_eq!(finished.stderr, "err\n");
}

#[test]
fn the_guest_has_its_own_kernel_and_the_containers_size() {
    let rvm = Rvm::new();
    let bundle = Bundle::shell(
        "uname -r; nproc; grep MemTotal /proc/meminfo; grep -c processor /proc/cpuinfo",
    )
    .with(|config| {
        config["linux"]["resources"]["memory"] = json!({ "limit": 256 << 20 });
        config["linux"]["resources"]["cpu"] = json!({ "quota": 50_000, "period": 100_000 });
    });
    let finished = rvm.run(&bundle, "box");
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    let lines: Vec<&str> = finished.stdout.lines().collect();
    let host = rustix::system::uname();
    assert_ne!(lines[0], host.release().to_str().unwrap());
    assert_eq!((lines[1], lines[3]), ("1", "1"));
    let kib: u64 = lines[2].split_whitespace().nth(1).unwrap().parse().unwrap();
    assert_eq!(kib, 256 << 10);
}

#[test]
fn the_guests_clock_is_finer_than_its_tick() {
    let source = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    let finished = Rvm::new().run(&Bundle::new(&["cat", source]), "box");
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    let source = finished.stdout.trim();
    assert!(
        ["tsc", "tsc-early", "kvm-clock"].contains(&source),
        "{source}"
    );
}

#[test]
fn the_verbs_lead_a_container_through_its_life() {
    let rvm = Rvm::new();
    let bundle =
        Bundle::shell("trap 'exit 3' TERM; touch /tmp/started; while :; do sleep 0.1; done");
    rvm.create(&bundle, "box");
    assert_eq!(rvm.status("box"), "created");
    assert!(
        !bundle.rootfs("tmp/started").exists(),
        "nothing runs before start"
    );
    let state = rvm.state("box");
    assert_eq!(state["ociVersion"], "1.0.2");
    assert_eq!(
        state["bundle"],
        bundle.path().canonicalize().unwrap().to_str().unwrap()
    );
    assert!(state["pid"].as_i64().unwrap() > 1);

    rvm.ok(&["start", "box"]);
    assert_eq!(rvm.status("box"), "running");
    eventually("the program runs", || bundle.rootfs("tmp/started").exists());
    assert!(rvm.ok(&["list"]).contains("running"));
    assert_eq!(rvm.ok(&["list", "--quiet"]), "box\n");

    rvm.ok(&["kill", "box", "TERM"]);
    rvm.wait_for_status("box", "stopped");
    assert_eq!(rvm.state("box")["pid"], 0);
    rvm.ok(&["delete", "box"]);
    assert_eq!(rvm.call(&["state", "box"]).code, 1);
}

#[test]
fn verbs_out_of_turn_say_so() {
    let rvm = Rvm::new();
    let bundle = Bundle::new(&["sleep", "1000"]);
    rvm.create(&bundle, "box");
    rvm.ok(&["start", "box"]);
    let failure = |args: &[&str]| {
        let finished = rvm.call(args);
        assert_eq!(finished.code, 1, "{args:?}");
        finished.stderr
    };
    assert!(failure(&["start", "box"]).contains("already running"));
    assert!(failure(&["delete", "box"]).contains("not stopped"));
    assert!(
        failure(&["run", "--bundle", bundle.path().to_str().unwrap(), "box"]).contains("exists")
    );
    rvm.ok(&["kill", "box", "KILL"]);
    rvm.wait_for_status("box", "stopped");
    assert!(failure(&["kill", "box"]).contains("not running"));
    assert!(failure(&["start", "box"]).contains("stopped"));
    rvm.ok(&["delete", "box"]);
    rvm.ok(&["delete", "--force", "box"]);
    assert!(failure(&["delete", "box"]).contains("does not exist"));
}

#[test]
fn the_monitor_has_the_pid_and_the_exit_code() {
    let rvm = Rvm::new();
    let bundle = Bundle::shell("exit 42");
    let pid_file = rvm.path("pid");
    let mut create = rvm.command(&[
        "create",
        "--pid-file",
        pid_file.to_str().unwrap(),
        "--bundle",
    ]);
    create.arg(bundle.write()).arg("box");
    // As an engine does, this process adopts the orphan.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    assert!(create.status().unwrap().success());
    let pid: i32 = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    assert_eq!(rvm.state("box")["pid"], pid);
    rvm.ok(&["start", "box"]);
    let pid = rustix::process::Pid::from_raw(pid);
    let options = rustix::process::WaitOptions::empty();
    let (_, status) = rustix::process::waitpid(pid, options).unwrap().unwrap();
    assert_eq!(status.exit_status(), Some(42));
    rvm.ok(&["delete", "box"]);
}

#[test]
fn a_detached_container_runs_on() {
    let rvm = Rvm::new();
    let bundle = Bundle::shell("sleep 1; echo done > /tmp/done");
    let mut run = rvm.command(&["run", "--detach", "--bundle"]);
    run.arg(bundle.write())
        .arg("box")
        .stdout(std::process::Stdio::null());
    assert!(run.status().unwrap().success());
    rvm.wait_for_status("box", "stopped");
    assert!(bundle.rootfs("tmp/done").exists());
    rvm.ok(&["delete", "box"]);
}

#[test]
fn a_container_killed_by_a_signal_ends_with_128_and_its_number() {
    let rvm = Rvm::new();
    for (signal, code) in [("KILL", 137), ("TERM", 143)] {
        let bundle = Bundle::shell(&format!("kill -{signal} $$")).with(drop_pid_namespace);
        assert_eq!(rvm.run(&bundle, "box").code, code);
    }
}

/// Process 1 of a pid namespace ignores signals that it sends itself.
fn drop_pid_namespace(config: &mut serde_json::Value) {
    let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "pid");
}

#[test]
fn signals_to_the_foreground_process_reach_the_container() {
    let rvm = Rvm::new();
    let script = "for s in HUP INT QUIT USR1 USR2 TERM WINCH CONT; do trap \"echo $s\" $s; done; \
                  trap 'exit 5' ALRM; echo ready; while :; do sleep 0.05; done";
    let bundle = Bundle::shell(script);
    let mut run = rvm.command(&["run", "--bundle"]);
    run.arg(bundle.write())
        .arg("box")
        .stdout(std::process::Stdio::piped());
    let mut child = run.spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    for (number, name) in [
        (libc::SIGHUP, "HUP"),
        (libc::SIGINT, "INT"),
        (libc::SIGQUIT, "QUIT"),
        (libc::SIGUSR1, "USR1"),
        (libc::SIGUSR2, "USR2"),
        (libc::SIGTERM, "TERM"),
        (libc::SIGWINCH, "WINCH"),
        (libc::SIGCONT, "CONT"),
    ] {
        command::signal(child.id() as i32, number);
        assert_eq!(lines.next().unwrap().unwrap(), name);
    }
    command::signal(child.id() as i32, libc::SIGALRM);
    assert_eq!(command::wait(child).status.code(), Some(5));
}

#[test]
fn volumes_are_shared_as_they_were_asked_for() {
    let rvm = Rvm::new();
    let host = tempfile::tempdir().unwrap();
    fs::write(host.path().join("file"), "from the host").unwrap();
    fs::create_dir(host.path().join("dir")).unwrap();
    let source = |name: &str| host.path().join(name).to_str().unwrap().to_owned();
    let script = "cat /etc/file; echo; echo from the guest > /data/new; \
                  echo no > /ro/new || echo read-only; ls /scratch; touch /scratch/x && ls /scratch";
    let bundle = Bundle::shell(script).with(|config| {
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.extend([
            json!({ "destination": "/etc/file", "type": "bind", "source": source("file"),
                    "options": ["bind"] }),
            json!({ "destination": "/data", "type": "bind", "source": source("dir"),
                    "options": ["rbind", "rw"] }),
            json!({ "destination": "/ro", "type": "bind", "source": source("dir"),
                    "options": ["rbind", "ro"] }),
            json!({ "destination": "/scratch", "type": "tmpfs", "source": "tmpfs" }),
        ]);
    });
    let finished = rvm.run(&bundle, "box");
    assert_eq!(
        finished.stdout, "from the host\nread-only\nx\n",
        "{}",
        finished.stderr
    );
    let new = fs::read_to_string(host.path().join("dir/new")).unwrap();
    assert_eq!(new, "from the guest\n");
}

/// Podman's volumes with the option `O`, and its mounts of images.
#[test]
fn an_overlay_of_the_hosts_directories_is_a_volume() {
    use std::os::unix::fs::FileTypeExt;
    let rvm = Rvm::new();
    let at = |name: &str| rvm.path(name);
    for name in ["lower", "upper", "work"] {
        fs::create_dir(at(name)).unwrap();
    }
    for name in ["kept", "changed", "removed"] {
        fs::write(at("lower").join(name), "below\n").unwrap();
    }
    let lower = format!("lowerdir={}", at("lower").display());
    let all = format!(
        "{lower},upperdir={},workdir={}",
        at("upper").display(),
        at("work").display()
    );
    let overlay = |at: &str, options: &[&str]| json!({ "destination": at, "type": "overlay", "source": "overlay", "options": options });
    let two = format!("{lower}:{}", at("upper").display());
    let script = "cat /o/kept; echo above >/o/changed; rm /o/removed; touch /two/x; ls /two";
    let bundle = Bundle::shell(script)
        .mount(overlay("/o", &[&all, "private"]))
        .mount(overlay("/two", &["ro", &two]));
    let finished = rvm.run(&bundle, "box");
    assert_eq!(
        finished.stdout, "below\nchanged\nkept\nremoved\n",
        "{}",
        finished.stderr
    );
    assert!(
        finished.stderr.contains("Read-only file system"),
        "{}",
        finished.stderr
    );
    let above = fs::read_to_string(at("upper").join("changed")).unwrap();
    assert_eq!(above, "above\n");
    let below = fs::read_to_string(at("lower").join("changed")).unwrap();
    assert_eq!(below, "below\n");
    assert!(at("lower").join("removed").exists());
    let whiteout = fs::symlink_metadata(at("upper").join("removed")).unwrap();
    assert!(whiteout.file_type().is_char_device());
    assert!(!at("upper").join("kept").exists());
}

#[test]
fn files_keep_their_owners_and_modes_on_the_host() {
    use std::os::unix::fs::MetadataExt;
    let rvm = Rvm::new();
    let bundle = Bundle::shell("touch /tmp/f; mkdir -m 700 /tmp/d; sync").with(|config| {
        config["process"]["user"] = json!({ "uid": 1234, "gid": 567 });
    });
    std::os::unix::fs::chown(bundle.rootfs("tmp"), Some(1234), Some(567)).unwrap();
    let finished = rvm.run(&bundle, "box");
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    let file = std::fs::metadata(bundle.rootfs("tmp/f")).unwrap();
    assert_eq!((file.uid(), file.gid()), (1234, 567));
    assert_eq!(
        std::fs::metadata(bundle.rootfs("tmp/d")).unwrap().mode() & 0o777,
        0o700
    );
}

#[test]
fn many_files_survive_the_way_to_the_host_and_back() {
    let rvm = Rvm::new();
    let script = "mkdir /tmp/t; for i in $(seq 500); do echo $i > /tmp/t/$i; done; \
                  cat /tmp/t/* | md5sum; rm -r /tmp/t; ls /tmp | wc -l";
    let finished = rvm.run(&Bundle::shell(script), "box");
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    assert_eq!(finished.stdout.lines().last(), Some("0"));
}

#[test]
fn what_a_killed_container_wrote_is_on_the_host_when_it_has_ended() {
    let rvm = Rvm::new();
    let script = "dd if=/dev/zero of=/tmp/data bs=1M count=24 2>/dev/null; \
                  echo end >>/tmp/data; touch /tmp/done; while :; do sleep 1; done";
    let bundle = Bundle::shell(script);
    rvm.create(&bundle, "box");
    rvm.ok(&["start", "box"]);
    eventually("it is written", || bundle.rootfs("tmp/done").exists());
    rvm.ok(&["kill", "box", "KILL"]);
    rvm.wait_for_status("box", "stopped");
    let data = std::fs::read(bundle.rootfs("tmp/data")).unwrap();
    assert_eq!(data.len(), (24 << 20) + 4);
    assert!(data.ends_with(b"end\n"));
    rvm.ok(&["delete", "box"]);
}
