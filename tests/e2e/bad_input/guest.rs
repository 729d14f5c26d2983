//! Mistakes that only the guest can find.

use super::*;

#[test]
fn a_program_that_cannot_be_executed_is_named_in_runcs_words() {
    for (program, reason) in [
        ("nonexistent", "executable file not found in $PATH"),
        (
            "/nonexistent",
            "stat /nonexistent: no such file or directory",
        ),
        ("/etc/plain", "permission denied"),
    ] {
        let rvm = Rvm::new();
        let bundle = Bundle::new(&[program]);
        fs::write(bundle.rootfs("etc/plain"), "not a program").unwrap();
        let refusal = line(&rvm, &rvm.run(&bundle, "box"));
        let expected = format!(
            "rvm run failed: unable to start container process: exec: {program:?}: {reason}"
        );
        assert_eq!(refusal.trim_end(), expected);
    }
}

#[test]
fn what_the_guest_refuses_reaches_the_creator() {
    let rvm = Rvm::new();
    let bundle = Bundle::new(&["nonexistent"]);
    let dir = bundle.write().to_str().unwrap();
    let pid_file = rvm.path("pid");
    let finished = rvm.call(&[
        "create",
        "--pid-file",
        pid_file.to_str().unwrap(),
        "--bundle",
        dir,
        "box",
    ]);
    says(
        &line(&rvm, &finished),
        &["rvm create failed: ", "executable file not found in $PATH"],
    );
    assert!(!pid_file.exists());
}

/// Runs a container whose guest fails before that; returns rvm's message.
fn failure(configuration: &str) -> String {
    let rvm = Rvm::new().configured(configuration);
    let finished = rvm.run(&Bundle::new(&["true"]), "box");
    assert_eq!(
        (finished.code, finished.stdout.as_str()),
        (1, ""),
        "{finished:?}"
    );
    rvm.assert_nothing_left();
    // One line, with the console below it.
    let (explanation, console) = finished.stderr.split_once('\n').unwrap();
    says(
        explanation,
        &["rvm run failed: ", "boot", &rvm_tests::engine()],
    );
    assert!(
        console.lines().skip(1).all(|line| line.starts_with("  ")),
        "{console}"
    );
    finished.stderr
}

#[test]
fn a_kernel_that_panics_shows_the_end_of_its_console() {
    let failure = failure("kernel_params = \"rdinit=/nonexistent\"");
    says(
        &failure,
        &[
            "the guest crashed",
            "\nthe end of the guest's console:\n",
            "Kernel panic",
        ],
    );
}

#[test]
fn an_agent_that_never_answers_is_given_up_on_time() {
    // The kernel hangs after its panic.
    let silent = "kernel_params = \"rdinit=/nonexistent panic=0\"\nstart_timeout_seconds = 10";
    let failure = failure(silent);
    says(
        &failure,
        &[
            "its agent did not answer within 10 s",
            "start_timeout_seconds",
        ],
    );
    says(
        &failure,
        &["\nthe end of the guest's console:\n", "Kernel panic"],
    );
}

#[test]
fn an_init_that_is_no_agent_is_given_up_on_time() {
    let work = tempfile::tempdir().unwrap();
    let initramfs = work.path().join("initramfs");
    let pack = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-kernel/initramfs");
    // Busybox as init waits for input at its console.
    let packed = Command::new(pack)
        .arg("/bin/busybox")
        .arg(&initramfs)
        .status()
        .unwrap();
    assert!(packed.success());
    let failure = failure(&format!(
        "initramfs = {initramfs:?}\nstart_timeout_seconds = 10"
    ));
    says(&failure, &["its agent did not answer within 10 s"]);
}

#[test]
fn an_elf_file_that_is_no_kernel_is_explained_by_the_engine() {
    let rvm = Rvm::new().configured("kernel = \"/bin/busybox\"");
    let finished = rvm.run(&Bundle::new(&["true"]), "box");
    assert_eq!(finished.code, 1);
    let word = if rvm_tests::engine() == "qemu" {
        "PVH"
    } else {
        "kernel"
    };
    says(&finished.stderr, &["rvm run failed: ", word]);
    assert!(
        !finished.stderr.contains("switched its machine off"),
        "{}",
        finished.stderr
    );
}
