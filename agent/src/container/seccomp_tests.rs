use super::*;

const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;

fn filter(json: &str) -> Filter {
    compile(&serde_json::from_str(json).unwrap()).unwrap()
}

/// Runs a filter, as far as libseccomp and the stub use the language.
fn run(filter: &Filter, architecture: u32, number: u32, args: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend(number.to_ne_bytes());
    data.extend(architecture.to_ne_bytes());
    data.extend(0_u64.to_ne_bytes());
    args.iter().for_each(|arg| data.extend(arg.to_ne_bytes()));
    let program: Vec<_> = filter
        .instructions
        .chunks_exact(8)
        .map(|b| {
            let k = u32::from_ne_bytes(b[4..].try_into().unwrap());
            (
                u16::from_ne_bytes([b[0], b[1]]),
                b[2] as usize,
                b[3] as usize,
                k,
            )
        })
        .collect();
    let (mut at, mut a) = (0, 0_u32);
    loop {
        let (code, jt, jf, k) = program[at];
        at += 1;
        let branch = |condition: bool| if condition { jt } else { jf };
        match code {
            LOAD => {
                let k = k as usize;
                a = u32::from_ne_bytes(data[k..k + 4].try_into().unwrap());
            }
            JUMP => at += k as usize,
            JUMP_IF_EQUAL => at += branch(a == k),
            JUMP_IF_GREATER => at += branch(a > k),
            JUMP_IF_GREATER_OR_EQUAL => at += branch(a >= k),
            0x54 => a &= k,
            RETURN => return k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

const PROFILE: &str = r#"{
    "defaultAction": "SCMP_ACT_ERRNO",
    "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_MIPS"],
    "syscalls": [
        { "names": ["read", "write", "not_yet_invented"], "action": "SCMP_ACT_ALLOW" },
        { "names": ["openat2"], "action": "SCMP_ACT_ALLOW" },
        { "names": ["personality"], "action": "SCMP_ACT_ALLOW",
          "args": [{ "index": 0, "value": 8, "op": "SCMP_CMP_EQ" }] },
        { "names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 17 }
    ]
}"#;

#[test]
fn listed_calls_pass_and_others_do_not() {
    let filter = filter(PROFILE);
    assert_eq!(run(&filter, X86_64, libc::SYS_read as u32, [0; 6]), ALLOW);
    assert_eq!(run(&filter, X86_64, libc::SYS_reboot as u32, [0; 6]), EPERM);
    assert_eq!(
        run(
            &filter,
            X86_64,
            libc::SYS_personality as u32,
            [8, 0, 0, 0, 0, 0]
        ),
        ALLOW
    );
    assert_eq!(
        run(
            &filter,
            X86_64,
            libc::SYS_personality as u32,
            [9, 0, 0, 0, 0, 0]
        ),
        EPERM
    );
    let errno = libc::SECCOMP_RET_ERRNO | 17;
    assert_eq!(run(&filter, X86_64, libc::SYS_mkdir as u32, [0; 6]), errno);
    assert_eq!(run(&filter, I386, 3, [0; 6]), ALLOW, "read of i386");
}

#[test]
fn calls_newer_than_the_profile_do_not_exist() {
    let filter = filter(PROFILE);
    assert_eq!(
        run(&filter, X86_64, libc::SYS_openat2 as u32 + 1, [0; 6]),
        RETURN_ENOSYS
    );
    assert_eq!(run(&filter, I386, 437 + 1, [0; 6]), RETURN_ENOSYS);
    assert_eq!(
        run(&filter, X86_64, X32_BIT | 1, [0; 6]),
        ALLOW,
        "write of x32"
    );
}

#[test]
fn a_profile_that_allows_by_default_has_no_stub() {
    let filter = filter(
        r#"{"defaultAction":"SCMP_ACT_ALLOW",
            "syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_KILL_PROCESS"}]}"#,
    );
    assert_eq!(run(&filter, X86_64, 10_000, [0; 6]), ALLOW);
    let kill = libc::SECCOMP_RET_KILL_PROCESS;
    assert_eq!(run(&filter, X86_64, libc::SYS_mkdir as u32, [0; 6]), kill);
}

#[test]
fn conditions_on_one_argument_are_alternatives() {
    let filter = filter(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["personality"],
            "action":"SCMP_ACT_ALLOW","args":[
              {"index":0,"value":0,"op":"SCMP_CMP_EQ"},{"index":0,"value":8,"op":"SCMP_CMP_EQ"}]}]}"#,
    );
    let number = libc::SYS_personality as u32;
    assert_eq!(run(&filter, X86_64, number, [8, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(run(&filter, X86_64, number, [0; 6]), ALLOW);
    assert_eq!(run(&filter, X86_64, number, [1, 0, 0, 0, 0, 0]), EPERM);
}

#[test]
fn flags_are_the_kernels() {
    assert_eq!(filter(r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#).flags, 4);
    let json = r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_LOG"]}"#;
    assert_eq!(filter(json).flags, 2);
    assert_eq!(
        filter(r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":[]}"#).flags,
        0
    );
}

#[test]
fn notification_is_refused() {
    let config = serde_json::from_str(r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#).unwrap();
    assert!(matches!(compile(&config), Err(FilterError::Notify)));
}
