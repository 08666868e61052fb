#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    // The library's parser, and what it says of itself. Without questions: of those of an unknown kind that says that each
    // of them is kept, which has not been true since they are skipped (mdns_daemon has questions, too).
    let mut records = data.to_vec();
    if let Some(questions) = records.get_mut(4..6) {
        questions.fill(0);
    }
    mdns_sd::fuzz_api::parse_packet(&records);
    tributary_fuzz::mdns::check(data);
});
