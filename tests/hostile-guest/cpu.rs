//! Memory, ports, and the few functions of C that compiled code calls: those of the C library
//! choose their faster versions when a process starts, and no process starts here.

use std::arch::asm;

/// Functions that read and write memory, or a device's registers, with one instruction each.
macro_rules! memory {
    ($($get:ident $put:ident $type:ty: $class:ident $operand:literal;)*) => {$(
        pub fn $get(address: u64) -> $type {
            let value;
            // SAFETY: callers name devices, and memory that nothing else uses.
            unsafe {
                asm!(
                    concat!("mov ", $operand, ", [{address}]"),
                    value = out($class) value, address = in(reg) address,
                    options(nostack, preserves_flags),
                );
            }
            value
        }

        pub fn $put(address: u64, value: $type) {
            // SAFETY: as above.
            unsafe {
                asm!(
                    concat!("mov [{address}], ", $operand),
                    value = in($class) value, address = in(reg) address,
                    options(nostack, preserves_flags),
                );
            }
        }
    )*};
}

memory! {
    get8 put8 u8: reg_byte "{value}";
    get16 put16 u16: reg "{value:x}";
    get32 put32 u32: reg "{value:e}";
    get64 put64 u64: reg "{value:r}";
}

/// Functions that read and write I/O ports.
macro_rules! ports {
    ($($input:ident $output:ident $type:ty: $operand:tt;)*) => {$(
        pub fn $input(port: u16) -> $type {
            let value;
            // SAFETY: the guest's devices change nothing that this program counts with.
            unsafe {
                asm!(concat!("in ", $operand, ", dx"), in("dx") port, out($operand) value,
                    options(nostack, preserves_flags));
            }
            value
        }

        pub fn $output(port: u16, value: $type) {
            // SAFETY: as above.
            unsafe {
                asm!(concat!("out dx, ", $operand), in("dx") port, in($operand) value,
                    options(nostack, preserves_flags));
            }
        }
    )*};
}

ports! {
    in8 out8 u8: "al";
    in16 out16 u16: "ax";
    in32 out32 u32: "eax";
}

/// The port of the serial console.
pub const SERIAL: u16 = 0x3f8;

/// Writes to the guest's console.
pub fn print(text: &str) {
    for byte in text.bytes() {
        out8(SERIAL, byte);
    }
}

/// Writes a number to the guest's console.
pub fn print_number(number: u64) {
    if number > 9 {
        print_number(number / 10);
    }
    out8(SERIAL, b'0' + (number % 10) as u8);
}

/// Numbers that nobody could have guessed and that begin anew in each machine (xorshift64).
pub struct Dice(u64);

impl Dice {
    pub fn new() -> Self {
        // SAFETY: every x86-64 processor has the counter.
        Self(unsafe { std::arch::x86_64::_rdtsc() } | 1)
    }

    pub fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        (self.roll() >> 16) % end
    }

    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

/// Copies guest memory.
pub fn copy(to: u64, from: u64, bytes: usize) {
    // SAFETY: callers name memory that nothing else uses.
    unsafe {
        asm!("rep movsb", inout("rcx") bytes => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags));
    }
}

/// Fills guest memory.
pub fn fill(to: u64, byte: u8, bytes: usize) {
    // SAFETY: as above.
    unsafe {
        asm!("rep stosb", inout("rcx") bytes => _, inout("rdi") to => _, in("al") byte,
            options(nostack, preserves_flags));
    }
}

#[unsafe(no_mangle)]
extern "C" fn memcpy(to: u64, from: u64, bytes: usize) -> u64 {
    copy(to, from, bytes);
    to
}

#[unsafe(no_mangle)]
extern "C" fn memset(to: u64, byte: i32, bytes: usize) -> u64 {
    fill(to, byte as u8, bytes);
    to
}

#[unsafe(no_mangle)]
extern "C" fn memmove(to: u64, from: u64, bytes: usize) -> u64 {
    if to <= from {
        copy(to, from, bytes);
    } else {
        for place in (0..bytes as u64).rev() {
            put8(to + place, get8(from + place));
        }
    }
    to
}

#[unsafe(no_mangle)]
extern "C" fn memcmp(one: u64, other: u64, bytes: usize) -> i32 {
    for place in 0..bytes as u64 {
        let difference = i32::from(get8(one + place)) - i32::from(get8(other + place));
        if difference != 0 {
            return difference;
        }
    }
    0
}

#[unsafe(no_mangle)]
extern "C" fn bcmp(one: u64, other: u64, bytes: usize) -> i32 {
    memcmp(one, other, bytes)
}
