//! A virtual CPU at work: a thread that runs the guest and does what it asks for.
//!
//! ```text
//!             start             pause                    anything that ends the machine
//!   waiting ─────────> running ───────> paused    running ──────────────────────────────> ended
//!                         ^               │
//!                         └─── resume ────┘
//! ```
//!
//! To pause, a thread is sent [`KICK`]. The signal is blocked except while the CPU runs
//! (KVM_SET_SIGNAL_MASK), so it cannot be missed between a look at the state and the next run.

use std::os::fd::AsRawFd;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::{io, mem, ptr};

use kvm_ioctls::{VcpuExit, VcpuFd};
use rvm_protocol::POWER_OFF_PORT;
use rvm_protocol::vmm::StopReason;
use vmm_sys_util::eventfd::EventFd;

use crate::bus::Bus;

/// What the CPUs of a machine share.
pub struct Shared {
    bus: Bus,
    state: Mutex<State>,
    changed: Condvar,
    /// Readable once the machine has ended.
    ended: EventFd,
}

struct State {
    paused: bool,
    /// CPUs that have stopped because `paused` is set.
    parked: usize,
    stop: Option<StopReason>,
}

impl Shared {
    /// For CPUs that reach their devices over `bus`.
    pub fn new(bus: Bus) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            bus,
            state: Mutex::new(State {
                paused: false,
                parked: 0,
                stop: None,
            }),
            changed: Condvar::new(),
            ended: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
        }))
    }

    /// The devices.
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Readable once the machine has ended.
    pub fn ended(&self) -> &EventFd {
        &self.ended
    }

    /// Why the machine has ended, if it has.
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.lock().stop.clone()
    }

    /// Ends the machine. The first reason is kept.
    pub fn end(&self, reason: StopReason) {
        self.lock().stop.get_or_insert(reason);
        // Full means that it is readable already.
        let _ = self.ended.write(1);
    }

    /// Stops the CPUs on `threads` and returns when they have stopped.
    pub fn pause(&self, threads: &[Thread]) {
        let mut state = self.lock();
        state.paused = true;
        for thread in threads {
            thread.kick();
        }
        while state.parked < threads.len() && state.stop.is_none() {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets the CPUs run again.
    pub fn resume(&self) {
        self.lock().paused = false;
        self.changed.notify_all();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when the CPU may run.
    fn wait_while_paused(&self) {
        let mut state = self.lock();
        if !state.paused {
            return;
        }
        state.parked += 1;
        self.changed.notify_all();
        while state.paused {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.parked -= 1;
    }
}

/// A thread that runs a CPU.
#[derive(Clone, Copy, Debug)]
pub struct Thread(libc::pthread_t);

impl Thread {
    #[expect(unsafe_code, reason = "pthread calls")]
    fn kick(self) {
        // SAFETY: CPU threads end only with the process, so the id is valid.
        unsafe { libc::pthread_kill(self.0, kick_signal()) };
    }
}

/// The signal that stops a running CPU.
fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// A CPU, and the means to run it on the calling thread.
pub struct Vcpu {
    number: usize,
    fd: VcpuFd,
    shared: Arc<Shared>,
}

impl Vcpu {
    /// The CPU of that number, which does not run yet.
    pub fn new(number: usize, fd: VcpuFd, shared: Arc<Shared>) -> Self {
        Self { number, fd, shared }
    }

    /// Makes the calling thread the one that runs this CPU.
    pub fn adopt_thread(&self) -> io::Result<Thread> {
        block_kick()?;
        unblock_kick_in_guest(&self.fd)?;
        #[expect(unsafe_code, reason = "pthread_self")]
        // SAFETY: it takes nothing and cannot fail.
        Ok(Thread(unsafe { libc::pthread_self() }))
    }

    /// Runs the guest until the machine ends.
    pub fn run(&mut self) {
        let reason = loop {
            self.shared.wait_while_paused();
            match self.step() {
                Ok(None) => {}
                Ok(Some(reason)) => break reason,
                Err(error) => {
                    break StopReason::Failed {
                        reason: format!("KVM_RUN: {error}"),
                    };
                }
            }
        };
        self.shared.end(reason);
    }

    /// Runs the guest until it needs something. A reason ends the machine.
    fn step(&mut self) -> Result<Option<StopReason>, kvm_ioctls::Error> {
        let bus = &self.shared.bus;
        let exit = match self.fd.run() {
            Err(error) if error.errno() == libc::EINTR => {
                drain_kick();
                return Ok(None);
            }
            Err(error) if error.errno() == libc::EAGAIN => return Ok(None),
            other => other?,
        };
        match exit {
            VcpuExit::MmioRead(address, data) => bus.read(address, data),
            VcpuExit::MmioWrite(address, data) => bus.write(address, data),
            VcpuExit::IoIn(port, data) => bus.port_in(port, data),
            VcpuExit::IoOut(POWER_OFF_PORT, _) => return Ok(Some(StopReason::PowerOff)),
            VcpuExit::IoOut(port, data) => bus.port_out(port, data),
            VcpuExit::Shutdown => return Ok(Some(self.guest_reset())),
            VcpuExit::Intr => {}
            VcpuExit::FailEntry(reason, cpu) => {
                return Ok(failed(format!(
                    "KVM cannot enter the guest: {reason:#x} on CPU {cpu}"
                )));
            }
            VcpuExit::InternalError => return Ok(self.internal_error()),
            other => {
                return Ok(failed(format!(
                    "the guest did what KVM cannot do: {other:?}"
                )));
            }
        }
        Ok(None)
    }

    /// What a reset has to say: a kernel that panicked has told more on its console, and one that could
    /// not (an exception in an exception in an exception) has told nothing.
    fn guest_reset(&self) -> StopReason {
        StopReason::GuestReset {
            place: self.place(),
        }
    }

    /// Where the guest stands, for who looks for a mistake.
    fn place(&self) -> String {
        match (self.fd.get_regs(), self.fd.get_sregs()) {
            (Ok(regs), Ok(sregs)) => format!(
                "CPU {} at {:#x}, code segment at {:#x}, stack at {:#x}, CR0 {:#x}, CR2 {:#x}, \
                 CR3 {:#x}, CR4 {:#x}, EFER {:#x}",
                self.number,
                regs.rip,
                sregs.cs.base,
                regs.rsp,
                sregs.cr0,
                sregs.cr2,
                sregs.cr3,
                sregs.cr4,
                sregs.efer
            ),
            _ => format!("CPU {}", self.number),
        }
    }

    /// KVM could not go on. What a program did in the guest's user mode ends nothing: the CPU without
    /// the means to skip an instruction (SVM's nRIP) makes KVM read it, which fails if the guest's kernel
    /// has just unmapped it; done once more, the instruction faults, and that kernel maps it again.
    #[expect(unsafe_code, reason = "kvm_run is a union")]
    fn internal_error(&mut self) -> Option<StopReason> {
        // SAFETY: the last exit was KVM_EXIT_INTERNAL_ERROR, so this is the member that KVM wrote; its
        // fields are plain numbers.
        let error = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal };
        let what = match error.suberror {
            kvm_bindings::KVM_INTERNAL_ERROR_EMULATION => {
                "cannot emulate an instruction of the guest"
            }
            kvm_bindings::KVM_INTERNAL_ERROR_DELIVERY_EV => {
                "cannot deliver an exception to the guest"
            }
            _ => "gave up",
        };
        let is_emulation = error.suberror == kvm_bindings::KVM_INTERNAL_ERROR_EMULATION;
        if is_emulation && self.fd.get_sregs().is_ok_and(|sregs| sregs.ss.dpl == 3) {
            return None;
        }
        let known = error.data.iter().take(error.ndata as usize);
        let known: Vec<_> = known.map(|word| format!("{word:#x}")).collect();
        failed(format!(
            "KVM {what} (internal error {}: {}), {}",
            error.suberror,
            known.join(" "),
            self.place()
        ))
    }
}

fn failed(reason: String) -> Option<StopReason> {
    Some(StopReason::Failed { reason })
}

#[expect(unsafe_code, reason = "signal sets")]
fn kick_set() -> libc::sigset_t {
    // SAFETY: sigemptyset initializes the set, and the signal number is valid.
    unsafe {
        let mut set = mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, kick_signal());
        set
    }
}

#[expect(unsafe_code, reason = "pthread_sigmask")]
fn block_kick() -> io::Result<()> {
    // SAFETY: the set is initialized; the old mask is not asked for.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &kick_set(), ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Takes a kick that has done its work, so that it does not stop the next run too.
#[expect(unsafe_code, reason = "sigtimedwait")]
fn drain_kick() {
    let now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the set and the time are initialized; the details are not asked for.
    while unsafe { libc::sigtimedwait(&kick_set(), ptr::null_mut(), &now) } >= 0 {}
}

/// The kernel's struct kvm_signal_mask with its 8-byte set.
#[repr(C)]
struct SignalMask {
    len: u32,
    set: [u8; 8],
}

/// While the guest runs, no signal is blocked.
#[expect(unsafe_code, reason = "an ioctl that kvm-ioctls lacks")]
fn unblock_kick_in_guest(vcpu: &VcpuFd) -> io::Result<()> {
    // _IOW(KVMIO, 0x8b, struct kvm_signal_mask), whose flexible array counts nothing.
    const KVM_SET_SIGNAL_MASK: libc::Ioctl = 0x4004_ae8b;
    let mask = SignalMask {
        len: 8,
        set: [0; 8],
    };
    // SAFETY: the kernel reads `len` and then that many bytes behind it.
    let result =
        unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_SIGNAL_MASK, ptr::from_ref(&mask)) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
