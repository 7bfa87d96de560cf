//! Handovers: an auditor that pinned the first key gets to the last, and to no key that did not agree.
#![cfg(test)]

use orgstream_transparency::{HandOver, HandOverError, LogSigner, SignedNote};

fn key(number: u8) -> LogSigner {
    LogSigner::from_seed("audit.test".parse().unwrap(), &[number; 32])
}

#[test]
fn keys_are_followed_from_one_to_the_next() {
    let notes = [HandOver::sign(&key(2), &key(3)), HandOver::sign(&key(1), &key(2)), HandOver::sign(&key(8), &key(9))];
    let followed = HandOver::follow(key(1).verifier(), &notes);
    assert_eq!(followed, [1, 2, 3].map(|number| key(number).verifier().clone()));
    let back = HandOver::follow(key(3).verifier(), &notes);
    assert_eq!(back, [3, 2, 1].map(|number| key(number).verifier().clone()));
    assert_eq!(HandOver::follow(key(7).verifier(), &notes), [key(7).verifier().clone()]);
    let read = SignedNote::parse(notes[1].to_string().as_bytes()).unwrap();
    let hand_over = HandOver::read(&read).unwrap();
    assert_eq!((&hand_over.old, &hand_over.new), (key(1).verifier(), key(2).verifier()));
}

#[test]
fn both_must_have_signed_and_be_of_one_log() {
    let text = HandOver::sign(&key(1), &key(2)).to_string();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 6);
    for missing in [4, 5] {
        let kept: String =
            lines.iter().enumerate().filter(|(nth, _)| *nth != missing).map(|(_, line)| format!("{line}\n")).collect();
        let note = SignedNote::parse(kept.as_bytes()).unwrap();
        assert_eq!(HandOver::read(&note), Err(HandOverError::Unsigned));
    }
    let other = LogSigner::from_seed("other.test".parse().unwrap(), &[2; 32]);
    assert_eq!(HandOver::read(&HandOver::sign(&key(1), &other)), Err(HandOverError::Unsigned));
    // A third key in place of the second: the signatures are of another text.
    let third = key(3).verifier().to_string();
    let changed = text.replace(&key(2).verifier().to_string(), &third);
    assert!(matches!(
        HandOver::read(&SignedNote::parse(changed.as_bytes()).unwrap()),
        Err(HandOverError::BadSignature(_))
    ));
}
