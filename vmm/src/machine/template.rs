//! Templates: machines as they were when their agent was ready, from each of which any number of
//! machines are restored.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use rvm_protocol::vmm::{StopReason, TemplateConfig};

use super::devices::Role;
use super::saved::{Hardware, MachineState, SavedError};
use super::{Kernel, MachineError, config, connect, enter_jail, spawn_workers};
use crate::arch::x86_64::registers::RegisterError;
use crate::arch::x86_64::state::VcpuState;
use crate::fds::{PassedFds, borrow_eventfd};
use crate::kvm::{self, SavedVcpu, Vm};
use crate::memory::image::{self, ImageError};
use crate::memory::{self, GuestMemory};
use crate::vcpus::{RunState, Vcpus};
use crate::virtio::thread::DeviceThread;
use crate::virtio::vsock::HeldRequest;
use rvm_sys::fault_point;

/// Makes a template: boots its machine until the agent is ready, and writes it. The calling thread
/// is the process's only one, and is never filtered: until the machine ends it has run nothing but
/// our kernel and our agent, which have seen nothing of anybody.
pub fn make(config: &TemplateConfig, fds: Vec<OwnedFd>) -> Result<(), MachineError> {
    let mut fds = PassedFds::new(fds);
    let (machine, files) = (&config.machine, &config.files);
    config::validate(machine)?;
    let own = enter_jail(machine)?;

    let (state_file, memory_file) = (fds.take(files.state)?, fds.take(files.memory)?);
    let kernel = Kernel::take(machine, &mut fds)?;
    let shape = kernel.shape(machine);
    let kvm = fds.take(machine.kvm)?;
    let kvm_again = || kvm.try_clone().map_err(SavedError::File);
    let (kvm_of_trial, msrs) = (kvm_again()?, kvm::saveable_msrs(kvm_again()?)?);
    let memory = memory::map(machine.memory_mib)?;
    let vm = Vm::new(kvm, Arc::clone(&memory))?;
    let sizes = (machine.memory_mib, machine.max_memory_mib);
    let mut hardware = Hardware::of(Arc::clone(&memory), vm, sizes);
    let ready = Arc::new(HeldRequest::default());
    let role = Role::Template(Arc::clone(&ready));
    let (devices, bus) = connect(machine, &mut fds, &mut hardware, &role, own)?;

    let vcpus = kernel.load(machine, &hardware, bus.slots())?;
    let vm = &hardware.vm;
    let state = RunState::new(bus).map_err(MachineError::Thread)?;
    spawn_workers(devices.workers, &state)?;
    let vcpus = Vcpus::start(vcpus, Arc::clone(&state), machine.max_vcpus)?;
    run_until_ready(&devices.main, &state, &ready)?;
    let vcpus = vcpus.collect().ok_or(SavedError::Vcpus)?;
    // What the guest asked for last.
    devices
        .main
        .handle_pending()
        .map_err(MachineError::Thread)?;

    fault_point!("vmm.template").map_err(MachineError::Thread)?;
    let max = machine.max_vcpus;
    let new_msrs = vm.new_msrs(&msrs, max)?;
    let vcpus = vcpus.iter().map(|(id, vcpu)| {
        let state = VcpuState::save(vcpu, &new_msrs)?;
        Ok(SavedVcpu { id: *id, state })
    });
    let vcpus = vcpus.collect::<Result<_, RegisterError>>()?;
    let save = |slots| {
        Ok::<_, SavedError>(MachineState {
            shape,
            cards: devices.nets.cards().to_vec(),
            vm: vm.save(max)?,
            vcpus,
            slots,
            grown: None,
            blocks: write_memory(&memory, &memory_file.into())?,
        })
    };
    let saved = state.bus().save(save).map_err(SavedError::Devices)?;
    let template = saved?;
    // A KVM that does not take back what it has told makes no template, in place of one from which
    // no machine starts.
    template.restore_cpus(&Vm::new(kvm_of_trial, memory)?, max)?;
    Ok(template.write(state_file.into())?)
}

/// Writes the memory, in huge pages if the host's kernel has them for the file.
fn write_memory(memory: &GuestMemory, file: &File) -> Result<Vec<u64>, ImageError> {
    // The pages that the guest has touched are there: nothing is swapped out so early that matters,
    // and a template that lacks it does not come up and is removed.
    let mut blocks = Vec::new();
    image::write(memory, file, |_| false, |block| blocks.push(block))?;
    if let Err(error) = image::collapse(file, blocks.len()) {
        log::debug!("the template's memory stays in small pages: {error}");
    }
    Ok(blocks)
}

/// Serves the devices of the main thread until the guest says that it is ready.
fn run_until_ready(
    devices: &DeviceThread,
    state: &RunState,
    ready: &HeldRequest,
) -> Result<(), SavedError> {
    while ready.guest_port().is_none() {
        let mut fds = [
            PollFd::from_borrowed_fd(devices.fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(borrow_eventfd(state.ended()), PollFlags::IN),
        ];
        poll(&mut fds, None).map_err(|error| SavedError::File(error.into()))?;
        devices.handle_pending().map_err(SavedError::File)?;
        match state.stop_reason() {
            None => {}
            Some(StopReason::PowerOff | StopReason::Saved) => {
                return Err(SavedError::Ended("it has powered off".to_owned()));
            }
            Some(StopReason::GuestReset { place }) => return Err(SavedError::Ended(place)),
            Some(StopReason::Failed(failure)) => {
                return Err(SavedError::Ended(failure.to_string()));
            }
        }
    }
    Ok(())
}
