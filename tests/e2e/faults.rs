//! The fault matrix: what rvm does where a process dies, a system call fails, or the host lacks
//! something, at every step of every verb.
//!
//! Each case leads a container to a verb, has that verb (and what it starts) meet one fault, and
//! asserts what holds after each of them: the verb ends within [`case::LIMIT`], with success or
//! with one clear error; `rvm list` and `rvm state` answer; `rvm delete --force` succeeds, twice;
//! nothing is left. What can be faulted is recorded first, by the same verbs without a fault.
//!
//! The machine is played by a program that runs no guest (`tests/hostile`), so that a case takes a
//! fraction of a second. A run takes cases in an order by chance for a bounded time and prints the
//! seed; `$RVM_TEST_SEED` repeats an order, `$RVM_TEST_LONG` takes all cases.

#[path = "faults/calls.rs"]
mod calls;
#[path = "faults/case.rs"]
mod case;
#[path = "faults/environments.rs"]
mod environments;
#[path = "faults/points.rs"]
mod points;
#[path = "faults/scenarios.rs"]
mod scenarios;
#[path = "faults/shim.rs"]
mod shim;
#[path = "faults/matrix.rs"]
mod matrix;
