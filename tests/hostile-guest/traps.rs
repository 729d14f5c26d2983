//! Exceptions in kernel mode that the guest survives: it goes on after the instruction. In user
//! mode there is no stack for a handler, so that any exception ends the guest.

use std::arch::{asm, global_asm};

/// The exceptions by which a processor refuses an instruction, and the length of the instructions
/// of `attacks/processor.rs` that it may refuse.
const INVALID_OPCODE: usize = 6;
const GENERAL_PROTECTION: usize = 13;

global_asm!(
    // VMCALL and VMMCALL have three bytes.
    "guest_invalid_opcode:",
    "    add qword ptr [rsp], 3",
    "    iretq",
    // RDMSR and WRMSR have two; the error code comes first.
    "guest_general_protection:",
    "    add rsp, 8",
    "    add qword ptr [rsp], 2",
    "    iretq",
);

unsafe extern "C" {
    fn guest_invalid_opcode();
    fn guest_general_protection();
}

/// An entry of the interrupt descriptor table: two words.
type Gate = [u64; 2];

static mut TABLE: [Gate; 32] = [[0; 2]; 32];

/// The operand of LIDT.
#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

/// Has both exceptions handled, or none, not even as the host's firmware would.
pub fn install(are_handled: bool) {
    let handlers: [(usize, unsafe extern "C" fn()); 2] = [
        (INVALID_OPCODE, guest_invalid_opcode),
        (GENERAL_PROTECTION, guest_general_protection),
    ];
    let table = (&raw mut TABLE).cast::<Gate>();
    for (number, handler) in handlers {
        let address = handler as usize as u64;
        // Present, an interrupt gate, of the first code segment.
        let low = address & 0xffff | 8 << 16 | 0x8e00 << 32 | (address >> 16 & 0xffff) << 48;
        // SAFETY: the number is one of the table's, which nothing else uses.
        unsafe { table.add(number).write([low, address >> 32]) };
    }
    let pointer = Pointer {
        limit: if are_handled { 32 * 16 - 1 } else { 0 },
        base: table as u64,
    };
    // SAFETY: the table stays where it is.
    unsafe { asm!("lidt [{0}]", in(reg) &raw const pointer) };
}
