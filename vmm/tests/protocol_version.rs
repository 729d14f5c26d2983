//! rvm-vmm refuses a host that speaks another version of the control protocol.

use std::process::{Command, Stdio};

use rvm_protocol::vmm::{Channel, Event, PROTOCOL_VERSION, StopReason};

#[test]
fn a_configuration_of_another_version_is_refused_with_one_line_that_names_both() {
    let other = PROTOCOL_VERSION + 1;
    for mode in ["machine", "qemu", "backend"] {
        let (host, theirs) = Channel::pair().unwrap();
        rustix::io::write(&host, format!("rvm/{other} {{}}").as_bytes()).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_rvm-vmm"))
            .arg(mode)
            .stdin(Stdio::from(theirs.into_fd()))
            .output()
            .unwrap();
        assert!(!output.status.success(), "{mode}");
        let line = String::from_utf8(output.stderr).unwrap();
        let (event, _) = host.receive::<Event>().unwrap();
        let Event::Stopped(StopReason::Failed(failure)) = event else {
            panic!("{mode}: {event:?}");
        };
        assert_eq!(line, format!("ERROR {failure}\n"), "{mode}");
        for version in [PROTOCOL_VERSION, other] {
            assert!(
                line.contains(&format!("version {version}")),
                "{mode}: {line}"
            );
        }
    }
}
