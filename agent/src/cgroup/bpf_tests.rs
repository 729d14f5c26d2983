use super::*;
use crate::cgroup::device_rules::{access, with_defaults};
use rvm_sys::bpf::Instruction;
use rvm_sys::bpf::opcode::*;

/// Runs the few instructions that the generator uses.
fn run(program: &[Instruction], access_type: u32, major: u32, minor: u32) -> bool {
    let context = [access_type, major, minor];
    let mut registers = [0_u64; 11];
    let mut at = 0_usize;
    for _ in 0..10_000 {
        let i = program[at];
        let (to, from) = (usize::from(i.registers & 15), usize::from(i.registers >> 4));
        at += 1;
        let word = registers[to] as u32;
        let jump = match i.code {
            LOAD_WORD => {
                registers[to] = u64::from(context[usize::try_from(i.offset).unwrap() / 4]);
                false
            }
            MOVE_IMMEDIATE => {
                registers[to] = i.immediate as u64;
                false
            }
            MOVE_REGISTER => {
                registers[to] = registers[from];
                false
            }
            AND32_IMMEDIATE => {
                registers[to] = u64::from(word & i.immediate as u32);
                false
            }
            OR32_REGISTER => {
                registers[to] = u64::from(word | registers[from] as u32);
                false
            }
            SHIFT_LEFT32_IMMEDIATE => {
                registers[to] = u64::from(word << i.immediate);
                false
            }
            SHIFT_RIGHT32_IMMEDIATE => {
                registers[to] = u64::from(word >> i.immediate);
                false
            }
            JUMP_IF_NOT_EQUAL32 => word != i.immediate as u32,
            JUMP_IF_EQUAL32 => word == i.immediate as u32,
            EXIT => return registers[0] == 1,
            other => panic!("instruction {other:#x}"),
        };
        if jump {
            at = at.checked_add_signed(isize::from(i.offset)).unwrap();
        }
    }
    panic!("the program does not end")
}

fn allowed(rules: &str, kind: i32, major: u32, minor: u32, wanted: u8) -> bool {
    let rules: Vec<_> = serde_json::from_str(rules).unwrap();
    let program = device_program(&with_defaults(&rules).unwrap()).unwrap();
    run(
        program.instructions(),
        u32::from(wanted) << 16 | kind as u32,
        major,
        minor,
    )
}

const DENY_ALL: &str = r#"[{"allow":false,"access":"rwm"}]"#;
const ALLOW_ALL: &str = r#"[{"allow":true,"type":"a","access":"rwm"}]"#;

#[test]
fn the_default_devices_can_be_used_and_others_only_made() {
    for rules in ["[]", DENY_ALL] {
        assert!(allowed(rules, CHAR, 1, 3, access::READ | access::WRITE));
        assert!(allowed(rules, CHAR, 136, 42, access::READ));
        assert!(allowed(rules, BLOCK, 8, 0, access::MKNOD));
        assert!(!allowed(rules, BLOCK, 8, 0, access::READ));
        assert!(!allowed(rules, CHAR, 10, 229, access::WRITE));
        assert!(
            !allowed(rules, BLOCK, 1, 3, access::READ),
            "a block device is no character device"
        );
    }
}

#[test]
fn a_privileged_container_may_use_all() {
    assert!(allowed(ALLOW_ALL, BLOCK, 8, 0, access::ALL));
    assert!(allowed(ALLOW_ALL, CHAR, 4095, 77, access::ALL));
}

#[test]
fn accesses_may_come_from_several_rules() {
    let rules = r#"[{"allow":true,"type":"c","major":10,"minor":1,"access":"r"},
                    {"allow":true,"type":"c","major":10,"minor":1,"access":"w"}]"#;
    assert!(allowed(rules, CHAR, 10, 1, access::READ | access::WRITE));
    assert!(!allowed(rules, CHAR, 10, 2, access::READ));
}

#[test]
fn the_last_rule_that_matches_holds() {
    let rules = r#"[{"allow":true,"type":"a"},
                    {"allow":false,"type":"c","major":10,"minor":1,"access":"w"}]"#;
    assert!(!allowed(rules, CHAR, 10, 1, access::WRITE));
    assert!(!allowed(rules, CHAR, 10, 1, access::READ | access::WRITE));
    assert!(allowed(rules, CHAR, 10, 1, access::READ));
    let rules = r#"[{"allow":false,"type":"c","major":10,"minor":1,"access":"w"},
                    {"allow":true,"type":"c","major":10,"access":"rw"}]"#;
    assert!(allowed(rules, CHAR, 10, 1, access::WRITE));
}

#[test]
fn numbers_that_no_device_has_match_nothing() {
    let rules = r#"[{"allow":true,"type":"b","major":1,"minor":1048576,"access":"rwm"},
                    {"allow":true,"type":"b","major":4096,"minor":0,"access":"rwm"}]"#;
    assert!(!allowed(rules, BLOCK, 2, 0, access::READ));
    assert!(!allowed(rules, BLOCK, 0, 0, access::READ));
}
