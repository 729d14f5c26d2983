//! Where the guest's accesses outside its memory go: the device windows and the two ports that mean
//! something.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial};

use crate::arch::x86_64::layout::MMIO_START;
use crate::virtio::console::ConsoleLog;
use crate::virtio::mmio::{MmioTransport, WINDOW};

/// The first serial port of a PC, and its eight registers.
const SERIAL: std::ops::RangeInclusive<u16> = 0x3f8..=0x3ff;

/// The machine's devices.
pub struct Bus {
    /// In the order of their windows, which follow one another from [`MMIO_START`].
    devices: Vec<Mutex<MmioTransport>>,
    serial: Mutex<Serial<NoInterrupt, NoEvents, EarlyConsole>>,
}

impl Bus {
    /// A bus with these devices, and a serial port that the kernel prints to before it has found
    /// its console, above all when it panics so early.
    pub fn new(devices: Vec<MmioTransport>, early: Arc<Mutex<ConsoleLog>>) -> Self {
        Self {
            devices: devices.into_iter().map(Mutex::new).collect(),
            serial: Mutex::new(Serial::new(NoInterrupt, EarlyConsole(early))),
        }
    }

    /// The registers of a device by its number.
    pub fn device(&self, number: usize) -> Option<MutexGuard<'_, MmioTransport>> {
        self.devices.get(number).map(lock)
    }

    /// The guest reads memory that is not there.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some((device, offset)) => lock(device).read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// The guest writes memory that is not there.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.find(address) {
            lock(device).write(offset, data);
        }
    }

    /// The guest reads a port.
    pub fn port_in(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        if let (true, [byte]) = (SERIAL.contains(&port), data) {
            *byte = lock(&self.serial).read((port - SERIAL.start()) as u8);
        }
    }

    /// The guest writes a port.
    pub fn port_out(&self, port: u16, data: &[u8]) {
        if let (true, &[byte]) = (SERIAL.contains(&port), data) {
            // A log that cannot be written must not stop the guest.
            let _ = lock(&self.serial).write((port - SERIAL.start()) as u8, byte);
        }
    }

    fn find(&self, address: u64) -> Option<(&Mutex<MmioTransport>, u64)> {
        let offset = address.checked_sub(MMIO_START)?;
        let device = self.devices.get((offset / WINDOW) as usize)?;
        Some((device, offset % WINDOW))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The serial port is polled.
struct NoInterrupt;

impl Trigger for NoInterrupt {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        Ok(())
    }
}

/// The serial port's other end.
struct EarlyConsole(Arc<Mutex<ConsoleLog>>);

impl std::io::Write for EarlyConsole {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        lock(&self.0).append(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
