//! The number of elements in a message, counted without decoding it.

use protobuf::CodedInputStream;
use protobuf::rt::WireType;

/// The most fields of a message and of the messages in it together: as many processes as a list can
/// have. An empty element takes two bytes of a message, and some hundred once it is decoded.
const MAX_ELEMENTS: usize = 8192;

/// How deep the count goes: ttrpc's envelope, the answer in it. What an element of the answer holds
/// is no message with elements of its own, but for the counters of statistics.
const DEPTH: u32 = 1;

/// A message that is not decoded.
#[derive(Debug, thiserror::Error)]
pub(super) enum ElementsError {
    #[error(
        "the sandbox's agent has answered with more than the {MAX_ELEMENTS} elements that are read"
    )]
    TooMany,
    #[error("the sandbox's agent has answered with a malformed message: {0}")]
    Malformed(#[from] protobuf::Error),
}

/// Refuses a message with too many elements.
pub(super) fn check(message: &[u8]) -> Result<(), ElementsError> {
    let mut left = MAX_ELEMENTS;
    count(message, DEPTH, &mut left)
}

fn count(message: &[u8], depth: u32, left: &mut usize) -> Result<(), ElementsError> {
    let mut input = CodedInputStream::from_bytes(message);
    while let Some(tag) = input.read_raw_tag_or_eof()? {
        *left = left.checked_sub(1).ok_or(ElementsError::TooMany)?;
        match WireType::new(tag & 7) {
            Some(WireType::LengthDelimited) if depth > 0 => {
                count(&input.read_bytes()?, depth - 1, left)?;
            }
            Some(kind) => input.skip_field(kind)?,
            // ttrpc's decoder says what is wrong.
            None => return Ok(()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use protobuf::Message;
    use rvm_protocol::agent::{ListProcessesResponse, ProcessInfo};
    use ttrpc::Response;

    fn answer(processes: usize) -> Vec<u8> {
        let list = ListProcessesResponse {
            processes: vec![ProcessInfo::new(); processes],
            ..Default::default()
        };
        let mut answer = Response::new();
        answer.set_payload(list.write_to_bytes().unwrap());
        answer.write_to_bytes().unwrap()
    }

    #[test]
    fn a_list_is_counted_before_it_is_decoded() {
        assert!(check(&answer(MAX_ELEMENTS - 1)).is_ok());
        let refused = check(&answer(MAX_ELEMENTS)).unwrap_err();
        assert!(matches!(refused, ElementsError::TooMany), "{refused}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_counted_or_refused(message: Vec<u8>) {
            let _ = check(&message);
        }
    }

    #[test]
    fn a_message_that_ends_early_is_malformed() {
        let whole = answer(1);
        let refused = check(&whole[..whole.len() - 1]).unwrap_err();
        assert!(matches!(refused, ElementsError::Malformed(_)), "{refused}");
    }
}
