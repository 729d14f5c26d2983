//! Raw block volumes.

use rvm_tests::cri::{Cri, api};
use rvm_tests::disk::LoopDevice;

use crate::WAITS;

#[test]
fn a_block_volume_is_plugged_in_with_its_container_and_is_that_containers_alone() {
    let Some(device) = LoopDevice::new("on the node\n", 1 << 20, 512) else {
        return;
    };
    let cri = Cri::new();
    let pod = cri.pod("volumes", |_| {});
    let add_volume = |config: &mut api::ContainerConfig| {
        let mut volume = api::Device::new();
        volume.host_path = device.path().display().to_string();
        volume.container_path = "/dev/volume".to_owned();
        volume.permissions = "rwm".to_owned();
        config.devices.push(volume);
    };
    if rvm_tests::engine() == "qemu" {
        let mut config = pod.container_config("box", WAITS);
        add_volume(&mut config);
        let Err(refused) = pod.start_config(config) else {
            panic!("a machine of this engine has no disks");
        };
        let words = "the block device /dev/volume of linux.devices";
        assert!(refused.message.contains(words), "{refused:?}");
        return pod.remove();
    }
    let other = pod.start("other", WAITS, |_| {});
    let disks = || other.shell("ls /sys/block | grep -c ^vd; true");
    for round in ["one", "two"] {
        assert_eq!(disks(), "0\n");
        let owner = pod.start(round, WAITS, add_volume);
        assert_eq!(owner.shell("head -n 1 /dev/volume"), "on the node\n");
        owner.shell(&format!(
            "echo {round} | dd of=/dev/volume bs=512 seek=1 conv=sync"
        ));
        assert_eq!(disks(), "1\n");
        let script = "mknod /dev/stolen b $(tr : ' ' < /sys/block/vda/dev); head -c 1 /dev/stolen";
        let stolen = other.exec(script);
        assert!(stolen.stderr.contains("not permitted"), "{stolen:?}");
        other.shell("rm /dev/stolen");
        owner.stop(0);
        owner.remove();
        let image = std::fs::read(device.image()).unwrap();
        assert!(image[512..].starts_with(round.as_bytes()), "{round}");
    }
    pod.remove();
}
