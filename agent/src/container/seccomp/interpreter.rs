//! Runs filters, as far as libseccomp and we use the language.

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ) as u16;
const JUMP_IF_GREATER: u16 = (libc::BPF_JMP | libc::BPF_JGT) as u16;
const JUMP_IF_GREATER_OR_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JGE) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// What a filter says to a system call. `instructions` is an array of `struct sock_filter`.
pub fn run(instructions: &[u8], architecture: u32, number: u32, args: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend(number.to_ne_bytes());
    data.extend(architecture.to_ne_bytes());
    data.extend(0_u64.to_ne_bytes());
    args.iter().for_each(|arg| data.extend(arg.to_ne_bytes()));
    let program: Vec<_> = instructions.chunks_exact(8).map(decoded).collect();
    let (mut at, mut a) = (0, 0_u32);
    loop {
        let (code, jt, jf, k) = program[at];
        at += 1;
        let branch = |condition: bool| if condition { jt } else { jf };
        match code {
            LOAD => {
                let k = k as usize;
                a = u32::from_ne_bytes(data[k..k + 4].try_into().unwrap());
            }
            JUMP => at += k as usize,
            JUMP_IF_EQUAL => at += branch(a == k),
            JUMP_IF_GREATER => at += branch(a > k),
            JUMP_IF_GREATER_OR_EQUAL => at += branch(a >= k),
            AND => a &= k,
            RETURN => return k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

fn decoded(bytes: &[u8]) -> (u16, usize, usize, u32) {
    let k = u32::from_ne_bytes(bytes[4..].try_into().unwrap());
    let code = u16::from_ne_bytes([bytes[0], bytes[1]]);
    (code, bytes[2].into(), bytes[3].into(), k)
}
