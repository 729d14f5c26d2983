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

    /// The queues of the machine's device of this type, which is started at the first call. None if
    /// there is none.
    pub fn drive(&mut self, id: u32) -> Option<&mut [Queue; QUEUES as usize]> {
        if self.driven.is_none() {
            let device = self.devices.find(id)?;
            self.driven = Some((device, device.start()));
        }
        self.driven.as_mut().map(|(_, queues)| queues)
    }
}
