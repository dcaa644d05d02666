//! The decoders of the NBD wire format.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sinter::export::nbd::wire::options::{
    decode_client_flags, decode_greeting, decode_info_export, decode_info_payload_max, decode_info_request,
    decode_meta_context, decode_meta_request, decode_option_head, decode_option_reply_head,
};
use sinter::export::nbd::wire::transmission::{Style, decode_request};

fuzz_target!(|data: &[u8]| {
    let _ = decode_client_flags(data);
    let _ = decode_option_head(data);
    let _ = decode_info_request(data);
    let _ = decode_meta_request(data);
    let _ = decode_info_export(data);
    let _ = decode_info_payload_max(data);
    let _ = decode_meta_context(data, "base:allocation");
    if let Some(head) = data.first_chunk() {
        let _ = decode_greeting(head);
    }
    if let Some(head) = data.first_chunk() {
        let _ = decode_option_reply_head(head);
    }
    for style in [Style::Simple, Style::Structured, Style::Extended] {
        let _ = decode_request(data, style);
    }
});
