//! Where no user namespace can be made, rvm-vmm says so.

use std::process::Command;

const PROGRAM: &str = env!("CARGO_BIN_EXE_rvm-vmm");

#[test]
fn a_chroot_is_named_as_the_reason() {
    let output = Command::new(PROGRAM).arg("namespace").output().unwrap();
    assert!(output.stdout.is_empty(), "{output:?}");
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(PROGRAM, dir.path().join("rvm-vmm")).unwrap();
    let mut chroot = Command::new("chroot");
    chroot.arg(dir.path()).args(["/rvm-vmm", "namespace"]);
    let output = chroot.output().unwrap();
    let reason = String::from_utf8(output.stdout).unwrap();
    let expected = "cannot make a user namespace for the jail; the kernel allows none to a \
                    process in a chroot";
    assert!(reason.starts_with(expected), "{reason}");
}
