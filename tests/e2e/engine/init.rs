//! systemd as a container's init process.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use rvm_tests::command::eventually;
use rvm_tests::engine::{Container, Runtime, runtime};

use crate::engine;

/// The image; scripts/engines makes it once for all runs.
fn image() -> &'static str {
    static IMAGE: OnceLock<()> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/engines");
        let made = Command::new(script).arg("systemd").output().unwrap();
        assert!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        let archive = String::from_utf8(made.stdout).unwrap();
        let inside = engine().world().dir().join("systemd.tar");
        std::fs::copy(archive.trim(), &inside).unwrap();
        let change = "CMD [\"/sbin/init\"]";
        engine().ok(&["import", "--change", change, inside.to_str().unwrap(), NAME]);
        std::fs::remove_file(inside).unwrap();
    });
    NAME
}

const NAME: &str = "localhost/rvm-systemd:latest";

fn booted() -> Container<'static> {
    let container = engine().name();
    let mut run = vec!["run", "--detach", "--tty", "--name", &container.name];
    run.extend([
        "--privileged",
        "--tmpfs",
        "/run",
        "--tmpfs",
        "/run/lock",
        "--tmpfs",
        "/tmp",
    ]);
    run.extend(["--env", "container=oci", "--stop-signal", "SIGRTMIN+3"]);
    run.push(image());
    run.push("/sbin/init");
    engine().ok(&run);
    container
}

#[test]
fn systemd_runs_logs_and_is_stopped_in_order() {
    if runtime() == Runtime::Runc {
        println!("skipped: systemd in a container of runc depends on the host's cgroups");
        return;
    }
    let container = booted();
    let state = || {
        container
            .exec(&[], &["systemctl", "is-system-running"])
            .stdout
    };
    eventually("systemd has started everything", || {
        !matches!(state().trim(), "" | "initializing" | "starting" | "offline")
    });
    let failed = container
        .exec(&[], &["systemctl", "--failed", "--no-legend", "--plain"])
        .stdout;
    assert_eq!(state().trim(), "running", "failed units: {failed}");
    assert!(
        container.logs().contains("Reached target"),
        "{}",
        container.logs()
    );
    let journal = container.shell("journalctl --no-pager --lines=200");
    assert!(journal.contains("systemd"), "{journal}");
    container.ok(&["stop", "--time", "90"]);
    let code = container.inspect(".State.ExitCode");
    // SIGKILL would give 137. With a guest of its own, systemd may also power off.
    assert!(
        ["0", "130"].contains(&code.as_str()),
        "{code}: {}",
        container.logs()
    );
}
