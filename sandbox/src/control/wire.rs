//! The control socket's protocol: a line of JSON each way.
//!
//! A request says the version of the protocol that its sender speaks, in the request's own object,
//! where owners of version 1 pass over fields that they do not know:
//!
//! ```text
//! version 1   {"start":{"id":"web"}}                  "done"   {"failed":"the reason"}
//! version 2   {"start":{"id":"web","version":2}}      "done"   {"failed":{"code":"not-found",…}}
//! ```
//!
//! The answer is in the request's version. An owner refuses a request that it does not know, or of
//! a later version; a client takes answers of both versions.

use rvm_protocol::failure::{Code, Failure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Request;
use crate::sandbox::MemoryResult;

/// The version that this program speaks.
const VERSION: u64 = 2;

/// From this version on a failure has a code.
const CODED: u64 = 2;

/// The field of a request that says its version; a request without is of version 1.
const VERSION_FIELD: &str = "version";

/// What came of a request.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answer {
    Done,
    /// The machine keeps more memory than it was to have.
    KeepsMemory,
    Failed(Reason),
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Reason {
    Coded(Failure),
    Text(String),
}

/// A request as an owner receives it.
pub(super) struct Received {
    version: u64,
    /// The request, or why it cannot be served.
    pub(super) request: Result<Request, Failure>,
}

/// The line that asks for something.
pub(super) fn encode_request(request: &Request) -> serde_json::Result<Vec<u8>> {
    let mut message = serde_json::to_value(request)?;
    if let Some(body) = body(&mut message) {
        body.insert(VERSION_FIELD.to_owned(), VERSION.into());
    }
    line(&message)
}

/// Reads the line that asks for something.
pub(super) fn decode_request(line: &[u8]) -> serde_json::Result<Received> {
    let mut message: Value = serde_json::from_slice(line)?;
    let version = body(&mut message).and_then(|body| body.remove(VERSION_FIELD));
    let version = version.and_then(|version| version.as_u64()).unwrap_or(1);
    let request = if version > VERSION {
        Err(Failure::new(
            Code::Unimplemented,
            format!(
                "the sandbox's owner is of an older rvm: it speaks version {VERSION} of its \
                 protocol, the request is of version {version}"
            ),
        ))
    } else {
        serde_json::from_value(message).map_err(|error| {
            let reason = format!("the sandbox's owner does not know the request: {error}");
            Failure::new(Code::Unimplemented, reason)
        })
    };
    Ok(Received { version, request })
}

impl Received {
    /// The line that answers it.
    pub(super) fn encode_answer(
        &self,
        result: Result<MemoryResult, Failure>,
    ) -> serde_json::Result<Vec<u8>> {
        line(&match result {
            Ok(MemoryResult::AsAsked) => Answer::Done,
            Ok(MemoryResult::Kept) => Answer::KeepsMemory,
            Err(failure) if self.version < CODED => {
                Answer::Failed(Reason::Text(failure.to_string()))
            }
            Err(failure) => Answer::Failed(Reason::Coded(failure)),
        })
    }
}

/// Reads the line that answers a request.
pub(super) fn decode_answer(line: &[u8]) -> serde_json::Result<Result<MemoryResult, Failure>> {
    Ok(match serde_json::from_slice(line)? {
        Answer::Done => Ok(MemoryResult::AsAsked),
        Answer::KeepsMemory => Ok(MemoryResult::Kept),
        Answer::Failed(Reason::Coded(failure)) => Err(failure),
        Answer::Failed(Reason::Text(text)) => Err(Failure::new(Code::Internal, text)),
    })
}

/// The object behind the request's name.
fn body(message: &mut Value) -> Option<&mut serde_json::Map<String, Value>> {
    message
        .as_object_mut()?
        .values_mut()
        .next()?
        .as_object_mut()
}

fn line(message: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sizing::Change;
    use oci_spec::runtime::LinuxResources;
    use rvm_protocol::ContainerId;
    use serde_json::json;

    /// Lines of programs that speak version 1, recorded.
    const OLD_START: &str = r#"{"start":{"id":"web"}}"#;
    const OLD_RESIZE: &str = r#"{"resize":{"old":{"memory":{"limit":268435456},"cpu":{}},"new":{"memory":{"limit":536870912},"cpu":{}},"shared":false}}"#;
    const OLD_DONE: &[u8] = br#""done""#;
    const OLD_KEEPS_MEMORY: &[u8] = br#""keeps-memory""#;
    const OLD_FAILED: &[u8] = br#"{"failed":"container does not exist: web"}"#;

    /// What an owner of version 1 reads a line as.
    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "kebab-case")]
    enum OldRequest {
        Start { id: String },
        Resize(Box<Change>),
    }

    /// What a client of version 1 reads an answer as.
    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "kebab-case")]
    enum OldAnswer {
        Done,
        KeepsMemory,
        Failed(String),
    }

    fn start() -> Request {
        Request::Start {
            id: ContainerId::new("web").unwrap(),
        }
    }

    fn resize() -> Request {
        let limit = |bytes: i64| -> LinuxResources {
            serde_json::from_value(json!({ "memory": { "limit": bytes }, "cpu": {} })).unwrap()
        };
        let change = Change::new(&limit(268_435_456), &limit(536_870_912), false);
        Request::Resize(Box::new(change))
    }

    fn not_found() -> Failure {
        Failure::new(Code::NotFound, "container does not exist: web")
    }

    #[test]
    fn requests_and_answers_survive_the_way() {
        for request in [start(), resize()] {
            let received = decode_request(&encode_request(&request).unwrap()).unwrap();
            assert_eq!(received.request, Ok(request));
            for result in [
                Ok(MemoryResult::AsAsked),
                Ok(MemoryResult::Kept),
                Err(not_found()),
            ] {
                let answer = received.encode_answer(result.clone()).unwrap();
                assert_eq!(decode_answer(&answer).unwrap(), result);
            }
        }
    }

    #[test]
    fn an_old_client_is_served_in_its_own_words() {
        for (line, request) in [(OLD_START, start()), (OLD_RESIZE, resize())] {
            let received = decode_request(line.as_bytes()).unwrap();
            assert_eq!(received.request, Ok(request));
            for (result, old) in [
                (Ok(MemoryResult::AsAsked), OldAnswer::Done),
                (Ok(MemoryResult::Kept), OldAnswer::KeepsMemory),
                (Err(not_found()), OldAnswer::Failed(not_found().to_string())),
            ] {
                let answer = received.encode_answer(result).unwrap();
                assert_eq!(serde_json::from_slice::<OldAnswer>(&answer).unwrap(), old);
            }
        }
    }

    #[test]
    fn an_old_owner_serves_a_new_client() {
        for (request, old) in [(start(), OLD_START), (resize(), OLD_RESIZE)] {
            let line = encode_request(&request).unwrap();
            let read: OldRequest = serde_json::from_slice(&line).unwrap();
            assert_eq!(read, serde_json::from_str(old).unwrap());
        }
        assert_eq!(decode_answer(OLD_DONE).unwrap(), Ok(MemoryResult::AsAsked));
        assert_eq!(
            decode_answer(OLD_KEEPS_MEMORY).unwrap(),
            Ok(MemoryResult::Kept)
        );
        let text = Failure::new(Code::Internal, not_found().to_string());
        assert_eq!(decode_answer(OLD_FAILED).unwrap(), Err(text));
    }

    #[test]
    fn an_owner_says_what_it_cannot_serve() {
        for (line, words) in [
            (
                r#"{"start":{"id":"web","version":3,"how":"fast"}}"#,
                "it speaks version 2 of its protocol, the request is of version 3",
            ),
            (r#"{"grow":{"version":2}}"#, "does not know the request"),
            (r#"{"start":{"version":2}}"#, "missing field `id`"),
            (r#"[]"#, "does not know the request"),
        ] {
            let received = decode_request(line.as_bytes()).unwrap();
            let refused = received.request.as_ref().unwrap_err();
            assert_eq!(refused.code(), Code::Unimplemented, "{line}");
            assert!(refused.to_string().contains(words), "{refused}");
        }
        assert!(decode_request(b"start").is_err());
    }
}
