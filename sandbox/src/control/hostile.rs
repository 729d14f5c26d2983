//! Lines on the control socket, of who asks and of who answers.

use rvm_fuzz_input::Decisions;

use super::*;
use crate::config::EngineKind;
use crate::engine;
use crate::sizing::{Bounds, Running, Size};

/// Reads bytes as a request, as an answer, or as what rvm-vmm says over its own socket.
pub fn messages(input: &[u8]) {
    let mut decisions = Decisions(input);
    match decisions.choose(3) {
        0 => request(decisions.u64(), decisions.0),
        1 => answer(decisions.0),
        _ => engine::receive_any_event(decisions.0),
    }
}

/// A request that is understood has a time limit and, if it is about the machine's size, a size or
/// a refusal. Every other one gets an answer that its sender can read.
fn request(start_timeout: u64, line: &[u8]) {
    let Ok(received) = wire::decode_request(line) else {
        return;
    };
    if let Ok(request) = &received.request {
        let start = Duration::from_secs(start_timeout);
        assert!(request.clients_limit(start) >= request.owners_limit(start));
        let again = wire::encode_request(request).unwrap();
        assert_eq!(
            wire::decode_request(&again).unwrap().request.as_ref(),
            Ok(request)
        );
    }
    if let Ok(Request::Resize(change)) = &received.request {
        let size = |memory_mib| Size {
            vcpus: 1,
            memory_mib,
        };
        let running = Running {
            engine: EngineKind::Kvm,
            start: size(256),
            now: size(512),
            max: Size {
                vcpus: 8,
                memory_mib: 4096,
            },
        };
        let bounds = Bounds {
            host_cpus: 4,
            default_vcpus: 1,
            default_memory_mib: 256,
            max_vcpus: 8,
        };
        if let Ok(size) = running.size_for(change, &bounds) {
            assert!(size.is_possible(), "{size:?}");
        }
    }
    let failure = received.request.as_ref().err().cloned();
    let failure = failure.unwrap_or_else(|| Failure::new(Code::NotFound, "web"));
    for result in [
        Ok(MemoryResult::AsAsked),
        Ok(MemoryResult::Kept),
        Err(failure),
    ] {
        let line = received.encode_answer(result.clone()).unwrap();
        assert!(line.len() as u64 <= MAX_LINE);
        assert_eq!(wire::decode_answer(&line).unwrap().is_ok(), result.is_ok());
    }
}

/// What an owner says is short.
fn answer(line: &[u8]) {
    if let Ok(Err(failure)) = wire::decode_answer(line) {
        assert!(failure.to_string().len() <= MAX_MESSAGE);
    }
}
