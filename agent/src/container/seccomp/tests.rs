use super::*;
use rvm_sys::seccomp::X32_BIT;

const RETURN_ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;

fn filter(json: &str) -> Filter {
    compile(&serde_json::from_str(json).unwrap()).unwrap()
}

fn run(filter: &Filter, architecture: u32, number: u32, args: [u64; 6]) -> u32 {
    interpreter::run(&filter.instructions, architecture, number, args)
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

#[test]
fn every_comparison_looks_at_all_64_bits() {
    const BIG: u64 = 0x1_0000_0005;
    let near = [0, 4, 5, 6, BIG - 1, BIG, BIG + 1, 0x2_0000_0005, u64::MAX];
    type Holds = fn(u64, u64) -> bool;
    let cases: [(&str, Holds); 6] = [
        ("NE", |a, b| a != b),
        ("LT", |a, b| a < b),
        ("LE", |a, b| a <= b),
        ("EQ", |a, b| a == b),
        ("GE", |a, b| a >= b),
        ("GT", |a, b| a > b),
    ];
    for (name, holds) in cases {
        for value in [5, BIG] {
            let filter = filter(&format!(
                r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{{"names":["personality"],
                    "action":"SCMP_ACT_ALLOW","args":[
                    {{"index":3,"value":{value},"op":"SCMP_CMP_{name}"}}]}}]}}"#
            ));
            for argument in near {
                let args = [0, 0, 0, argument, 0, 0];
                let allowed = run(&filter, X86_64, libc::SYS_personality as u32, args) == ALLOW;
                assert_eq!(allowed, holds(argument, value), "{argument} {name} {value}");
            }
        }
    }
}

#[test]
fn a_masked_comparison_looks_at_the_masked_bits() {
    let filter = filter(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["clone"],
            "action":"SCMP_ACT_ALLOW","args":[
              {"index":0,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}]}]}"#,
    );
    let clone = |flags: u64| {
        run(
            &filter,
            X86_64,
            libc::SYS_clone as u32,
            [flags, 0, 0, 0, 0, 0],
        )
    };
    assert_eq!(clone(libc::CLONE_VM as u64 | 1 << 40), ALLOW);
    assert_eq!(clone(libc::CLONE_NEWUSER as u64), EPERM);
}

#[test]
fn conditions_on_several_arguments_must_all_hold() {
    let filter = filter(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["socket"],
            "action":"SCMP_ACT_ALLOW","args":[
              {"index":0,"value":1,"op":"SCMP_CMP_EQ"},{"index":1,"value":2,"op":"SCMP_CMP_LE"}]}]}"#,
    );
    let socket = |a, b| run(&filter, X86_64, libc::SYS_socket as u32, [a, b, 0, 0, 0, 0]);
    assert_eq!(
        (socket(1, 2), socket(1, 3), socket(2, 2)),
        (ALLOW, EPERM, EPERM)
    );
}

#[test]
fn i386_reaches_sockets_in_both_ways() {
    let filter = filter(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86"],
            "syscalls":[{"names":["socket"],"action":"SCMP_ACT_ALLOW"}]}"#,
    );
    assert_eq!(run(&filter, I386, 359, [0; 6]), ALLOW);
    assert_eq!(run(&filter, I386, 102, [1, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(run(&filter, I386, 102, [2, 0, 0, 0, 0, 0]), EPERM);
}

#[test]
fn an_architecture_that_is_not_listed_is_killed() {
    let filter = filter(r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#);
    let kill = libc::SECCOMP_RET_KILL_THREAD;
    assert_eq!(run(&filter, I386, 3, [0; 6]), kill);
    assert_eq!(run(&filter, X86_64, X32_BIT | 1, [0; 6]), kill);
    assert_eq!(run(&filter, X86_64, 1, [0; 6]), ALLOW);
}

#[test]
fn a_rule_for_every_second_call_still_fits() {
    let names: Vec<_> = (0..450)
        .step_by(2)
        .filter_map(|number| ScmpSyscall::from(number).get_name().ok())
        .collect();
    let json = format!(
        r#"{{"defaultAction":"SCMP_ACT_ERRNO",
            "architectures":["SCMP_ARCH_X86","SCMP_ARCH_X32"],
            "syscalls":[{{"names":{},"action":"SCMP_ACT_ALLOW"}}]}}"#,
        serde_json::to_string(&names).unwrap()
    );
    let filter = filter(&json);
    for number in [0, 2, 100, 200, 300] {
        assert_eq!(run(&filter, X86_64, number, [0; 6]), ALLOW, "{number}");
        assert_eq!(
            run(&filter, X86_64, number + 1, [0; 6]),
            EPERM,
            "{number} + 1"
        );
    }
}

#[test]
fn runs_of_any_length_have_the_verdict_of_their_calls() {
    let name = |number: u32| ScmpSyscall::from(number as i32).get_name().ok();
    for (run, period) in [(1, 2), (1, 3), (1, 5), (2, 3), (3, 7), (5, 6), (40, 3)] {
        let of_class = |class: u32| {
            let of_class = move |number: &u32| number / run % period == class;
            (0..450)
                .filter(of_class)
                .filter_map(name)
                .collect::<Vec<_>>()
        };
        let json = serde_json::json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
            {"names": of_class(0), "action": "SCMP_ACT_ALLOW"},
            {"names": of_class(1), "action": "SCMP_ACT_TRAP"},
        ]});
        let filter = filter(&json.to_string());
        for number in 0..400 {
            let expected = match number / run % period {
                0 if name(number).is_some() => ALLOW,
                1 if name(number).is_some() => libc::SECCOMP_RET_TRAP,
                _ => EPERM,
            };
            let found = interpreter::run(&filter.instructions, X86_64, number, [0; 6]);
            assert_eq!(found, expected, "{number} of {run}, {period}");
        }
    }
}

#[test]
fn programs_of_32_bits_compare_the_lower_halves_of_values() {
    // -1, as a program of 64 bits passes it; one of 32 bits passes the lower half.
    let filter = filter(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86","SCMP_ARCH_X32"],
            "syscalls":[{"names":["setuid"],"action":"SCMP_ACT_ERRNO","args":[
              {"index":0,"value":18446744073709551615,"op":"SCMP_CMP_EQ"}]}]}"#,
    );
    let setuid_of_i386 = |id: u64| run(&filter, I386, 23, [id, 0, 0, 0, 0, 0]);
    assert_eq!(setuid_of_i386(u32::MAX.into()), EPERM);
    assert_eq!(setuid_of_i386(1), ALLOW);
    let number = libc::SYS_setuid as u32;
    let setuid = |id: u64| run(&filter, X86_64, number, [id, 0, 0, 0, 0, 0]);
    assert_eq!((setuid(u64::MAX), setuid(u32::MAX.into())), (EPERM, ALLOW));
    let setuid_of_x32 = |id: u64| run(&filter, X86_64, X32_BIT | number, [id, 0, 0, 0, 0, 0]);
    assert_eq!(
        (setuid_of_x32(u64::MAX), setuid_of_x32(u64::MAX >> 1)),
        (EPERM, EPERM)
    );
}

#[test]
fn a_call_of_x32_before_the_first_that_is_listed_is_like_others_that_are_not() {
    let filter = filter(
        r#"{"defaultAction":"SCMP_ACT_KILL_PROCESS","architectures":["SCMP_ARCH_X32"],
            "syscalls":[{"names":["getpid"],"action":"SCMP_ACT_ALLOW"}]}"#,
    );
    let call = |number: i64| run(&filter, X86_64, X32_BIT | number as u32, [0; 6]);
    assert_eq!(call(libc::SYS_getpid), ALLOW);
    assert_eq!(call(libc::SYS_write), libc::SECCOMP_RET_KILL_PROCESS);
    assert_eq!(call(libc::SYS_getpid + 1), RETURN_ENOSYS);
    let between = run(&filter, X86_64, X32_BIT - 1, [0; 6]);
    assert_eq!(between, RETURN_ENOSYS);
}

#[test]
fn a_denial_of_some_sockets_holds_for_all_that_i386_makes_by_socketcall() {
    let profile = |default: &str, action: &str| {
        filter(&format!(
            r#"{{"defaultAction":"{default}","architectures":["SCMP_ARCH_X86"],
                "syscalls":[{{"names":["socket"],"action":"{action}","args":[
                  {{"index":0,"value":40,"op":"SCMP_CMP_EQ"}}]}}]}}"#
        ))
    };
    let [deny, allow] = [
        profile("SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"),
        profile("SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW"),
    ];
    let socket = |filter, domain| run(filter, I386, 359, [domain, 0, 0, 0, 0, 0]);
    assert_eq!((socket(&deny, 40), socket(&deny, 1)), (EPERM, ALLOW));
    assert_eq!((socket(&allow, 40), socket(&allow, 1)), (ALLOW, EPERM));
    let socketcall = |filter, call| run(filter, I386, 102, [call, 0, 0, 0, 0, 0]);
    assert_eq!((socketcall(&deny, 1), socketcall(&deny, 2)), (EPERM, ALLOW));
    assert_eq!(socketcall(&allow, 1), EPERM);
}
