//! What an image says of its containers, and images as volumes.

use rvm_tests::containerd::{major_version, snapshotter};
use rvm_tests::cri::{Cri, api};
use rvm_tests::image;

#[test]
fn a_container_is_stopped_by_its_images_signal() {
    const IMAGE: &str = "docker.io/library/rvm-signals:latest";
    let cri = Cri::new();
    for (signal, name) in [("SIGUSR1", "USR1"), ("SIGRTMIN+3", "37")] {
        let mut config = image::config(&["sh"]);
        config["StopSignal"] = signal.into();
        cri.containerd().import_for(&snapshotter(), IMAGE, &config);
        let pod = cri.pod("signals", |_| {});
        let script = format!(
            "trap 'echo told; exit 5' {name}; trap 'exit 6' TERM; echo ready; \
             while :; do sleep 0.1; done"
        );
        let box_ = pod.start("box", &script, |config| {
            config.image.mut_or_insert_default().image = IMAGE.to_owned();
        });
        rvm_tests::command::eventually("it is ready", || !box_.log_lines().is_empty());
        box_.stop(30);
        assert_eq!(box_.ended().exit_code, 5, "{signal}");
        assert_eq!(box_.log_lines()[1].2, "told");
        pod.remove();
    }
}

/// Mounts the image of the test's containers.
fn volume(config: &mut api::ContainerConfig, at: &str) {
    let mut mount = api::Mount::new();
    mount.image.mut_or_insert_default().image = image::NAME.to_owned();
    mount.container_path = at.to_owned();
    mount.readonly = true;
    config.mounts.push(mount);
}

#[test]
fn an_image_is_a_volume_that_nobody_can_change() {
    if major_version() < 2 {
        println!("skipped: only containerd 2 mounts images");
        return;
    }
    let cri = Cri::with("", "overlayfs");
    let pod = cri.pod("images", |_| {});
    let one = pod.start("one", super::WAITS, |config| volume(config, "/image"));
    let two = pod.start("two", super::WAITS, |config| volume(config, "/other"));
    one.shell("cmp /image/bin/busybox /bin/busybox && ls /image/bin/sh");
    two.shell("cmp /other/bin/busybox /bin/busybox");
    let written = one.exec("echo more > /image/file");
    assert!(written.stderr.contains("Read-only"), "{written:?}");
    let removed = one.exec("rm /image/bin/busybox");
    assert!(removed.stderr.contains("Read-only"), "{removed:?}");
    assert_eq!(one.shell("/image/bin/busybox echo runs"), "runs\n");
    pod.remove();
}
