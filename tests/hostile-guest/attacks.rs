//! The attacks. Each is a function that the guest calls again and again.

mod devices;
mod processor;
mod rings;
mod shared_files;
mod vsock;

use crate::guest::Guest;
pub use rings::{ADDRESSES, LENGTHS};

/// An attack.
pub struct Attack {
    pub name: &'static str,
    pub round: fn(&mut Guest),
    /// Whether the agent is served between the rounds.
    pub serves: bool,
    /// Whether the whole guest has to run in kernel mode.
    pub needs_kernel_mode: bool,
    /// Whether the console is what is attacked, so that nothing else can be printed to it.
    pub is_noisy: bool,
}

/// One whose agent goes on.
const fn beside_the_agent(name: &'static str, round: fn(&mut Guest)) -> Attack {
    Attack {
        name,
        round,
        serves: true,
        needs_kernel_mode: false,
        is_noisy: false,
    }
}

/// One whose agent falls silent.
const fn instead(name: &'static str, round: fn(&mut Guest)) -> Attack {
    Attack {
        serves: false,
        ..beside_the_agent(name, round)
    }
}

/// One that floods the console.
const fn noisy(name: &'static str, round: fn(&mut Guest)) -> Attack {
    Attack {
        is_noisy: true,
        ..beside_the_agent(name, round)
    }
}

/// One that user mode may not make.
const fn privileged(name: &'static str, round: fn(&mut Guest)) -> Attack {
    Attack {
        needs_kernel_mode: true,
        ..beside_the_agent(name, round)
    }
}

/// All of them.
pub static ATTACKS: &[Attack] = &[
    beside_the_agent("nothing", |_| std::hint::spin_loop()),
    beside_the_agent("bad-queues", rings::bad_queues),
    beside_the_agent("bad-chains", rings::bad_chains),
    beside_the_agent("loops", rings::loops),
    beside_the_agent("indirect", rings::indirect),
    beside_the_agent("rewrites", rings::rewrites),
    beside_the_agent("second-processor", rings::second_processor),
    beside_the_agent("second-processor-files", shared_files::second_processor),
    beside_the_agent("resets", rings::resets),
    beside_the_agent("doorbells", rings::doorbells),
    beside_the_agent("registers", rings::registers),
    beside_the_agent("config-space", rings::config_space),
    noisy("console", devices::console),
    noisy("serial", devices::serial),
    beside_the_agent("balloon", devices::balloon),
    beside_the_agent("reports", devices::reports),
    beside_the_agent("memory-plug", devices::memory_plug),
    beside_the_agent("sectors", devices::sectors),
    beside_the_agent("random", devices::random),
    beside_the_agent("packets", devices::packets),
    beside_the_agent("connections", vsock::connections),
    beside_the_agent("half-open", vsock::half_open),
    beside_the_agent("output", vsock::output),
    beside_the_agent("forged-ends", vsock::forged_ends),
    beside_the_agent("answers", vsock::answers),
    instead("garbage", vsock::garbage),
    instead("short-packets", vsock::short_packets),
    instead("credit", vsock::credit),
    instead("deaf", vsock::deaf),
    instead("never-reads", |_| std::hint::spin_loop()),
    beside_the_agent("lookups", shared_files::lookups),
    beside_the_agent("names", shared_files::names),
    beside_the_agent("messages", shared_files::messages),
    beside_the_agent("open-files", shared_files::open_files),
    beside_the_agent("special-files", shared_files::special_files),
    beside_the_agent("offsets", shared_files::offsets),
    beside_the_agent("locks", shared_files::locks),
    beside_the_agent("renames", shared_files::renames),
    beside_the_agent("ports", processor::ports),
    beside_the_agent("holes", processor::holes),
    beside_the_agent("cpuid", processor::cpuid),
    beside_the_agent("interrupts", processor::interrupts),
    beside_the_agent("timer", processor::timer),
    instead("triple-fault", processor::triple_fault),
    privileged(
        "model-specific-registers",
        processor::model_specific_registers,
    ),
    privileged("hypercalls", processor::hypercalls),
    Attack {
        serves: false,
        ..privileged("halt", processor::halt)
    },
];
