use super::lists::{KVM_IRQFD, KVM_RUN, THREAD_FLAGS};
use super::*;
use rustix::process::{WaitOptions, waitpid};
use rvm_sys::clone::{COPY_FLAGS, CloneRequest, Cloned, clone_process, exit_now};

#[test]
fn every_kind_of_thread_has_a_filter_that_the_kernel_accepts() {
    for kind in ThreadKind::ALL {
        // A thread of its own keeps the filter from the other tests.
        let thread = std::thread::spawn(move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            kind.apply().unwrap();
        });
        thread.join().unwrap();
    }
}

/// The signal that ends a process in which a thread of this kind makes a call.
#[expect(unsafe_code, reason = "a process of its own, and any system call")]
fn signal_after(kind: ThreadKind, call: libc::c_long, arguments: [u64; 3]) -> Option<i32> {
    let code = kind.program().assemble().unwrap();
    let [first, second, third] = arguments;
    // SAFETY: the child makes system calls alone and ends in its arm.
    match unsafe { clone_process(&CloneRequest::default()) }.unwrap() {
        // SAFETY: without a descriptor or with a length of 0 no call of the test has an effect.
        Cloned::Child => unsafe {
            let installed = install(&code, 0);
            libc::syscall(call, first, second, third);
            exit_now(i32::from(installed.is_err()))
        },
        Cloned::Parent { pid, .. } => {
            let ended = waitpid(Some(pid), WaitOptions::empty()).unwrap();
            let status = ended.unwrap().1;
            assert_ne!(status.exit_status(), Some(1), "the kernel takes the filter");
            status.terminating_signal()
        }
    }
}

#[test]
fn a_call_that_is_not_listed_or_has_other_arguments_kills_the_process() {
    const NO_FD: u64 = u64::MAX;
    let executable = libc::PROT_EXEC as u64;
    let readable = libc::PROT_READ as u64;
    let (getfd, setfl) = (libc::F_GETFD as u64, libc::F_SETFL as u64);
    for kind in [
        ThreadKind::Vcpu,
        ThreadKind::Main,
        ThreadKind::MainWithCpuHotplug,
    ] {
        let signal = |call, arguments| signal_after(kind, call, arguments);
        for arguments in [[0, 0, readable], [0, 0, 0]] {
            assert_eq!(signal(libc::SYS_mprotect, arguments), None);
        }
        for bits in [executable, executable | readable] {
            assert_eq!(signal(libc::SYS_mprotect, [0, 0, bits]), Some(libc::SIGSYS));
        }
        assert_eq!(signal(libc::SYS_fcntl, [NO_FD, getfd, 0]), None);
        assert_eq!(
            signal(libc::SYS_fcntl, [NO_FD, setfl, 0]),
            Some(libc::SIGSYS)
        );
        for (call, ends) in [
            (libc::SYS_read, None),
            (libc::SYS_read | 0x4000_0000, Some(libc::SIGSYS)),
            (libc::SYS_ptrace, Some(libc::SIGSYS)),
            (10_000, Some(libc::SIGSYS)),
        ] {
            assert_eq!(signal(call, [NO_FD, 0, 0]), ends, "{kind:?} {call}");
        }
    }
    let run = |request| signal_after(ThreadKind::Vcpu, libc::SYS_ioctl, [NO_FD, request, 0]);
    assert_eq!(run(KVM_RUN), None);
    assert_eq!(
        run(KVM_RUN | 1 << 32),
        None,
        "the kernel ignores the high half"
    );
    assert_eq!(run(KVM_IRQFD), Some(libc::SIGSYS));
}

#[test]
fn threads_can_be_made_and_nothing_else_by_clone() {
    let threads = [
        ThreadKind::MainWithCpuHotplug,
        ThreadKind::Files,
        ThreadKind::VhostUser,
    ];
    for kind in threads {
        let signal = |call, arguments| signal_after(kind, call, arguments);
        assert_eq!(signal(libc::SYS_clone3, [0; 3]), None, "it is missing");
        let new = [libc::CLONE_NEWUSER, libc::CLONE_NEWNET, libc::SIGCHLD];
        for flags in new
            .map(|flag| THREAD_FLAGS | flag as u64)
            .into_iter()
            .chain([0])
        {
            let ends = signal(libc::SYS_clone, [flags, 0, 0]);
            assert_eq!(ends, Some(libc::SIGSYS), "{kind:?} {flags:#x}");
        }
    }
    let made = std::thread::spawn(|| {
        ThreadKind::Files.apply().unwrap();
        std::thread::spawn(|| 7).join().unwrap()
    });
    assert_eq!(made.join().unwrap(), 7);
}

#[test]
fn the_main_thread_alone_can_copy_the_process_and_makes_no_namespaces_by_it() {
    for kind in [ThreadKind::Main, ThreadKind::MainWithCpuHotplug] {
        let new = [libc::CLONE_NEWUSER, libc::CLONE_NEWPID, libc::CLONE_PARENT];
        let other = new.map(|flag| COPY_FLAGS | flag as u64).into_iter();
        for flags in other.chain([libc::SIGCHLD as u64, libc::CLONE_PIDFD as u64]) {
            let ends = signal_after(kind, libc::SYS_clone, [flags, 0, 0]);
            assert_eq!(ends, Some(libc::SIGSYS), "{kind:?} {flags:#x}");
        }
        // The descriptor of the copy has no place to go to.
        assert_eq!(
            signal_after(kind, libc::SYS_clone, [COPY_FLAGS, 0, 0]),
            None
        );
    }
    for kind in [ThreadKind::Vcpu, ThreadKind::Files, ThreadKind::Network] {
        let ends = signal_after(kind, libc::SYS_clone, [COPY_FLAGS, 0, 0]);
        assert_eq!(ends, Some(libc::SIGSYS), "{kind:?}");
    }
}

#[test]
fn no_thread_clears_its_parent_death_signal() {
    let signal = libc::PR_SET_PDEATHSIG as u64;
    for kind in [ThreadKind::Files, ThreadKind::MainWithCpuHotplug] {
        let ends = signal_after(kind, libc::SYS_prctl, [signal, 0, 0]);
        assert_eq!(ends, Some(libc::SIGSYS), "{kind:?}");
    }
}

#[test]
fn no_kind_of_thread_may_open_a_socket_or_run_a_program() {
    for kind in ThreadKind::ALL {
        for call in [
            libc::SYS_socket,
            libc::SYS_execve,
            libc::SYS_ptrace,
            libc::SYS_mount,
        ] {
            let listed = kind
                .rules()
                .into_iter()
                .flatten()
                .any(|rule| rule.call == call);
            assert!(!listed, "{kind:?} {call}");
        }
    }
}
