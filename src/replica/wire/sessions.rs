//! What is remembered of sessions, as bytes of the stream.

use std::collections::BTreeMap;

use crate::format::bytes::{Append, Reader};
use crate::store::{Origin, PARTS_MAX, Progress, SESSIONS_MAX, SessionPicture, SessionsPicture};
use crate::units::{ByteCount, RequestId, RequestNumber, SessionId, SessionMemory};

use super::take_flag;

const NO_ORIGIN: u8 = 0;
const IN_PART: u8 = 1;
const WHOLE: u8 = 2;

/// Appends what an operation does for a request.
pub(super) fn put_origin(bytes: &mut Vec<u8>, origin: Option<&Origin>) {
    let Some(Origin { request, progress }) = origin else { return bytes.put_u8(NO_ORIGIN) };
    match progress {
        Progress::Through(done) => {
            bytes.put_u8(IN_PART);
            bytes.put_u64(done.0);
        }
        Progress::Done => bytes.put_u8(WHOLE),
    }
    put_session(bytes, request.session);
    bytes.put_u64(request.number.0);
}

/// Reads what `put_origin` appended; the outer `None` for anything else.
pub(super) fn take_origin(reader: &mut Reader<'_>) -> Option<Option<Origin>> {
    let progress = match reader.u8()? {
        NO_ORIGIN => return Some(None),
        IN_PART => Progress::Through(ByteCount(reader.u64()?)),
        WHOLE => Progress::Done,
        _ => return None,
    };
    let request = RequestId { session: take_session(reader)?, number: RequestNumber(reader.u64()?) };
    Some(Some(Origin { request, progress }))
}

/// Appends all that is remembered.
pub(super) fn put_picture(bytes: &mut Vec<u8>, picture: &SessionsPicture) {
    bytes.put_u64(picture.memory.0);
    bytes.put_u8(u8::from(picture.has_forgotten));
    bytes.put_u32(u32::try_from(picture.sessions.len()).expect("at most 1,024"));
    for session in &picture.sessions {
        put_session(bytes, session.session);
        bytes.put_u64(session.newest.0);
        session.done.iter().for_each(|word| bytes.put_u64(*word));
        bytes.put_u16(u16::try_from(session.parts.len()).expect("at most 128"));
        for (number, done) in &session.parts {
            bytes.put_u64(number.0);
            bytes.put_u64(done.0);
        }
    }
}

/// Reads what `put_picture` appended; `None` for anything else.
pub(super) fn take_picture(reader: &mut Reader<'_>) -> Option<SessionsPicture> {
    let memory = SessionMemory(reader.u64()?);
    let has_forgotten = take_flag(reader)?;
    let count = reader.u32()? as usize;
    if count > SESSIONS_MAX {
        return None;
    }
    let mut sessions = Vec::new();
    for _ in 0..count {
        let (session, newest) = (take_session(reader)?, RequestNumber(reader.u64()?));
        let mut picture =
            SessionPicture { session, newest, done: Default::default(), parts: BTreeMap::new() };
        for word in &mut picture.done {
            *word = reader.u64()?;
        }
        let parts = usize::from(reader.u16()?);
        for _ in 0..parts {
            picture.parts.insert(RequestNumber(reader.u64()?), ByteCount(reader.u64()?));
        }
        if parts > PARTS_MAX || picture.parts.len() != parts {
            return None;
        }
        sessions.push(picture);
    }
    Some(SessionsPicture { memory, has_forgotten, sessions })
}

fn put_session(bytes: &mut Vec<u8>, session: SessionId) {
    bytes.put_slice(&session.0.to_le_bytes());
}

fn take_session(reader: &mut Reader<'_>) -> Option<SessionId> {
    Some(SessionId(u128::from_le_bytes(reader.array()?)))
}
