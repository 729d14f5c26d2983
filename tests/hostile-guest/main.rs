//! A hostile kernel, in place of the guest's: it has all of the machine to itself, plays the agent
//! until the host has started a container, and then attacks the host, in the way that its command
//! line names (`attack=NAME`), until it is killed. `tests/e2e/hostile_guest.rs` runs it.
//!
//! At each power of two it prints how many rounds of the attack it has made.

#![no_main]
#![allow(
    unsafe_code,
    clippy::cast_possible_truncation,
    reason = "there is nothing below it that would be safe, and it parses what it trusts"
)]

mod agent;
mod attacks;
mod boot;
mod cpu;
mod files;
mod guest;
mod second;
mod streams;
mod traps;
mod virtio;

use attacks::ATTACKS;
use cpu::{print, print_number};
use guest::Guest;

/// How often the agent looks for packets between the start of the container and the attack.
const LULL: u32 = 50_000;

/// The attack that the command line names.
fn attack() -> Option<&'static attacks::Attack> {
    let mut words = boot::command_line().split(' ');
    let name = words.find_map(|word| word.strip_prefix("attack="))?;
    ATTACKS.iter().find(|attack| attack.name == name)
}

/// What the guest does in kernel mode.
extern "C" fn kernel() {
    let stays = attack().is_some_and(|attack| attack.needs_kernel_mode);
    traps::install(stays);
    if stays {
        user();
    }
}

/// What it does then, in user mode.
extern "C" fn user() -> ! {
    let Some(attack) = attack() else {
        print("no such attack\n");
        loop {
            std::hint::spin_loop();
        }
    };
    let mut guest = Guest::new(boot::command_line());
    while !guest.agent.is_started {
        guest.agent.serve();
    }
    // The host hears that the container has started.
    for _ in 0..LULL {
        guest.agent.serve();
    }
    let mut rounds: u64 = 0;
    loop {
        (attack.round)(&mut guest);
        rounds += 1;
        if rounds.is_power_of_two() && !attack.is_noisy {
            print("\nrounds ");
            print_number(rounds);
            print("\n");
        }
        if attack.serves {
            guest.agent.serve();
        }
    }
}
