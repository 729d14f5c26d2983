//! The file that --log names.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

#[test]
fn a_log_file_is_its_owners_to_write_whatever_the_umask() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let status = Command::new("sh")
        .args(["-c", "umask 0; exec \"$@\"", "sh"])
        .arg(env!("CARGO_BIN_EXE_rvm"))
        .arg("--root")
        .arg(dir.path().join("root"))
        .arg("--log")
        .arg(&log)
        .args(["state", "box"])
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(1));
    assert_eq!(log.metadata().unwrap().permissions().mode() & 0o777, 0o644);
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(text.contains("container does not exist"), "{text}");
}
