//! Docker's live-restore: containers that go on while there is no daemon.

use std::fs;

use rvm_tests::command::eventually;
use rvm_tests::engine::docker::{docker_with_live_restore as engine, restart};

#[test]
fn containers_outlive_the_daemon_and_their_exits_are_told_to_the_next_one() {
    let dir = engine().world().dir().join("volume");
    fs::create_dir(&dir).unwrap();
    let volume = format!("{}:/volume", dir.display());
    let counts = "i=0; while [ ! -e /volume/end ]; do i=$((i+1)); echo $i >/volume/count; \
                  echo line $i; sleep 0.2; done; exit 5";
    let stays = engine().start(&["--volume", &volume], &["sh", "-c", counts]);
    let ends = "until [ -e /volume/away ]; do sleep 0.2; done; exit 6";
    let ends = engine().start(&["--volume", &volume], &["sh", "-c", ends]);
    let count = || -> u64 {
        let text = fs::read_to_string(dir.join("count")).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    };
    eventually("it counts", || count() > 0);
    restart(engine(), || {
        let before = count();
        eventually("it counts on without a daemon", || count() > before + 3);
        fs::write(dir.join("away"), "").unwrap();
    });
    assert_eq!(stays.status(), "running");
    assert_eq!(stays.shell("echo here"), "here\n");
    let line = format!("line {}\n", count());
    stays.wait_for_log(&line);
    ends.wait_for_status("exited");
    // From 1.7 on, a containerd that starts forgets a task that has ended before, with runc as
    // well. Docker says 255 then.
    let version = engine()
        .world()
        .command("containerd")
        .arg("--version")
        .output();
    let version = String::from_utf8(version.unwrap().stdout).unwrap();
    let code = ends.inspect(".State.ExitCode");
    let is_forgotten = code == "255" && !version.contains(" 1.6.");
    assert!(code == "6" || is_forgotten, "{code}, {version}");
    fs::write(dir.join("end"), "").unwrap();
    assert_eq!(stays.ok(&["wait"]).trim(), "5");
}
