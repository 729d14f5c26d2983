//! How a machine ends.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr
)]

mod support;

use support::Bundle;

/// What QEMU makes of the byte at its isa-debug-exit device.
const SWITCHED_OFF: i32 = 2 * rvm_protocol::POWER_OFF_BYTE as i32 + 1;

#[tokio::test]
async fn shutdown_ends_containers_writes_data_back_and_switches_the_machine_off() {
    let guest = guest_or_skip!();
    let command = "head -c 3000000 /dev/zero > /tmp/big; exec sleep 1000";
    let bundle = Bundle::shell(guest.machine, "last", command);
    guest.run_in_background(&bundle).await;
    let probe = "until [ $(stat -c %s /tmp/big) = 3000000 ]; do sleep 0.1; done";
    assert_eq!(guest.exec_shell("last", "probe", probe).await.status, 0);
    guest
        .agent
        .shutdown(support::context(), &Default::default())
        .await
        .unwrap();
    let size = std::fs::metadata(bundle.rootfs.join("tmp/big"))
        .unwrap()
        .len();
    assert_eq!(size, 3_000_000);
    assert_eq!(guest.machine.wait(), Some(SWITCHED_OFF));
}
