//! What an attack has to work with.

use crate::agent::Agent;
use crate::cpu::Dice;
use crate::files::Files;
use crate::virtio::{Device, Devices, QUEUES, Queue, device_id};

/// The guest.
pub struct Guest {
    pub devices: Devices,
    pub agent: Agent,
    pub dice: Dice,
    pub files: Option<Files>,
    /// The device that is driven rightly, once it is started.
    pub driven: Option<(Device, [Queue; QUEUES as usize])>,
}

impl Guest {
    pub fn new(command_line: &str) -> Self {
        let devices = Devices::new(command_line);
        let vsock = devices.find(device_id::VSOCK).unwrap_or_default();
        Self {
            agent: Agent::new(vsock),
            devices,
            dice: Dice::new(),
            files: None,
            driven: None,
        }
    }

    /// Any device but the one that the agent needs.
    pub fn victim(&mut self) -> Device {
        loop {
            let device = self.dice.one_of(self.devices.all());
            if device.id() != device_id::VSOCK {
                return device;
            }
        }
    }

    /// The queues of the machine's device of this type, which is started at the first call. A guest
    /// without one never returns, so that it counts no round.
    pub fn drive(&mut self, id: u32) -> &mut [Queue; QUEUES as usize] {
        let found = match self.driven.take() {
            Some(driven) => driven,
            None => {
                let device = self.wait_for(id);
                (device, device.start())
            }
        };
        &mut self.driven.insert(found).1
    }

    /// The machine's device of this type, once there is one.
    pub fn wait_for(&mut self, id: u32) -> Device {
        loop {
            match self.devices.find(id) {
                Some(device) => return device,
                None => self.agent.serve(),
            }
        }
    }
}
