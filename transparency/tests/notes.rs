//! Notes, keys, checkpoints, policies and proof files: known answers of other implementations, and refused inputs.
#![cfg(test)]

use orgstream_transparency::{
    BadSignature, Checkpoint, Distrust, Evidence, EvidenceError, FormatError, Hash, KeyName, LogKey, LogSigner,
    MAX_NOTE_BYTES, MAX_SIGNATURES, Policy, PolicyError, ProofError, SignatureLine, SignedNote, TreeHead, WitnessKey,
    WitnessSigner, leaf_hash, verify_event,
};
use proptest::prelude::*;

const GOLDEN: &str = include_str!("data/golden.tlog-proof");
const GOLDEN_LOG: &str = "audit.example.test/org_00000000000000000000000001+de90e551+\
    Aawnxtg4B75l7Z0nkdNbY7nQNvxZ/ad+/DFKV5jBaV9n";
const GOLDEN_WITNESS: &str = "witness.example.test/w1+9e08b608+BPq4poXq5jJmw9P5Yk2gTqH8gRHM+BAOUko7oSaWfyxf";
/// The data of leaf 5 of the golden tree.
const GOLDEN_EVENT: [u8; 4] = [0x40, 0x41, 0x42, 0x43];

/// A checkpoint of a public log, with cosignatures of public witnesses.
const PUBLIC: &[u8] = include_bytes!("data/arche2025h1.checkpoint");
const PUBLIC_LOG: &str = "arche2025h1.staging.ct.transparency.dev+ba2f06c0+\
    AU0vHmlGCS/PdN8b2OaGmKprLI8HKM+dJ472xgFYh15f";
const PUBLIC_WITNESSES: [&str; 4] = [
    "transparency.dev/DEV:witness-little-garden+d8042a87+BCtusOxINQNUTN5Oj8HObRkh2yHf/MwYaGX4CPdiVEPM",
    "witness1.smartit.nu/witness1+a48c820f+BPSFWg9G6KPiO7QPryYO5Xq4oYJJ+kAvLKLSimDhoxMO",
    "remora.n621.de+da77ade7+BOvN63jn/bLvkieywe8R6UYAtVtNbZpXh34x7onlmtw2",
    "witness.stagemole.eu+67f7aea0+BEqSG3yu9YrmcM3BHvQYTxwFj3uSWakQepafafpUqklv",
];

/// The example of signed-note.
const SPECIFIED_KEY: &str = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k";
const SPECIFIED_NOTE: &str = "This is an example message.\n\n\u{2014} example.com/foo \
    Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n";

/// The example of Go's package sumdb/note.
const GO_KEY: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
const GO_SECRET: &str = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz";
const GO_NOTE: &str = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem \
    is.\n\n\u{2014} PeterNeumann \
    x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";

/// Of Go's checksum database, whose origin is not the name of its key.
const SUMDB_KEY: &str = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8";
const SUMDB_NOTE: &str = "go.sum database tree\n15067302\ngJyioq6dwR9n+NjEWORfYmH+ubeYm3kH42BBQ0bTpYI=\n\n\u{2014} \
    sum.golang.org \
    Az3grp1rvWOs5NKlr/xR4GLN/CDyzzakmt1o61uSxYKpK1SerqOP2ClbX/peKUZjYnyomH5Xz7GZG3TpB7OeKn4E2ww=\n";

fn log_key(text: &str) -> LogKey {
    text.parse().unwrap()
}

fn witness_key(text: &str) -> WitnessKey {
    text.parse().unwrap()
}

fn note(text: &str) -> SignedNote {
    SignedNote::parse(text.as_bytes()).unwrap()
}

fn golden_policy(threshold: usize) -> Policy {
    Policy::new(log_key(GOLDEN_LOG), vec![witness_key(GOLDEN_WITNESS)], threshold).unwrap()
}

fn head(size: u64) -> TreeHead {
    TreeHead { size, root: leaf_hash(&size.to_be_bytes()) }
}

fn log(name: &str) -> LogSigner {
    LogSigner::from_seed(name.parse().unwrap(), &[1; 32])
}

#[test]
fn known_signatures_are_valid_and_no_others() {
    for (key, text) in [(SPECIFIED_KEY, SPECIFIED_NOTE), (GO_KEY, GO_NOTE), (SUMDB_KEY, SUMDB_NOTE)] {
        let key = log_key(key);
        assert_eq!(key.verify(&note(text)), Ok(Some(())));
        let (body, _) = text.rsplit_once("\n\n").unwrap();
        for place in 0..body.len() {
            let mut bytes = text.as_bytes().to_vec();
            bytes[place] ^= 1;
            if let Ok(changed) = SignedNote::parse(&bytes) {
                assert_eq!(key.verify(&changed), Err(BadSignature(key.name().clone())));
            }
        }
    }
    // Of another key, even one with the same name: ignored.
    assert_eq!(log_key(GO_KEY).verify(&note(SPECIFIED_NOTE)), Ok(None));
    let same_name = LogSigner::from_seed("example.com/foo".parse().unwrap(), &[3; 32]);
    assert_eq!(same_name.verifier().verify(&note(SPECIFIED_NOTE)), Ok(None));
}

#[test]
fn every_bit_of_a_signature_counts() {
    let key = log_key(SPECIFIED_KEY);
    let line = note(SPECIFIED_NOTE).signatures()[0].clone();
    for bit in 0..8 * line.signature.len() {
        let mut line = line.clone();
        line.signature[bit / 8] ^= 1 << (bit % 8);
        let changed = format!("This is an example message.\n\n{line}\n");
        assert_eq!(key.verify(&note(&changed)), Err(BadSignature(key.name().clone())));
    }
    let mut longer = line.clone();
    longer.signature.push(0);
    key.verify(&note(&format!("This is an example message.\n\n{line}\n{longer}\n"))).unwrap_err();
}

#[test]
fn keys_are_written_as_others_write_them() {
    for key in [SPECIFIED_KEY, GO_KEY, SUMDB_KEY, GOLDEN_LOG, PUBLIC_LOG] {
        assert_eq!(log_key(key).to_string(), key);
    }
    for key in PUBLIC_WITNESSES {
        assert_eq!(witness_key(key).to_string(), key);
    }
    let secret: LogSigner = GO_SECRET.parse().unwrap();
    assert_eq!(secret.to_secret_text(), GO_SECRET);
    assert_eq!(secret.verifier().to_string(), GO_KEY);
    assert_eq!(format!("{secret:?}"), format!("SignerKey {{ verifier: {GO_KEY}, .. }}"));
    let witness = WitnessSigner::from_seed("w".parse().unwrap(), &[9; 32]);
    assert_eq!(witness.to_secret_text().parse::<WitnessSigner>().unwrap().verifier(), witness.verifier());
}

#[test]
fn keys_that_are_none_are_refused_by_what_is_wrong() {
    let (name, rest) = SPECIFIED_KEY.split_once('+').unwrap();
    // The point of order one, under which a signature can be made for any text without a secret.
    let weak = LogKey::new("weak".parse().unwrap(), &{
        let mut bytes = [0; 32];
        bytes[0] = 1;
        bytes
    });
    assert_eq!(weak.unwrap_err().to_string(), "the key is not an Ed25519 public key");
    let cases = [
        (GOLDEN_WITNESS.to_owned(), "the key is of type 0x04, and 0x01 is wanted"),
        (format!("example.org/foo+{rest}"), "the key's id is not that of its name and key"),
        (SPECIFIED_KEY.replace("530d903a", "530D903A"), "the key's id is not that of its name and key"),
        (SPECIFIED_KEY.replace("530d903a", "30d903a"), "the key's id is not that of its name and key"),
        (format!("a b+{rest}"), "a key's name is not a word without spaces, control characters and +"),
        (format!("+{rest}"), "a key's name is not a word without spaces, control characters and +"),
        (format!("{}+{rest}", "n".repeat(256)), "a key's name is longer than 255 bytes"),
        (name.to_owned(), "the key is not a name, an id and base64 between +"),
        (format!("{SPECIFIED_KEY}="), "the key is not canonical base64"),
        (format!("{name}+530d903a+AekyeQ=="), "the key is not 32 bytes after its type"),
        (format!("{name}+530d903a+"), "the key's type is missing"),
    ];
    for (key, error) in cases {
        assert_eq!(key.parse::<LogKey>().unwrap_err().to_string(), error, "{key}");
    }
    assert_eq!(GO_KEY.parse::<LogSigner>().unwrap_err().to_string(), "PRIVATE+KEY+ is missing");
    GO_SECRET.replace("Neumann", "Newmann").parse::<LogSigner>().unwrap_err();
}

#[test]
fn notes_that_are_none_are_refused_by_what_is_wrong() {
    let line = SPECIFIED_NOTE.rsplit_once("\n\n").unwrap().1;
    let many = |lines: usize| format!("text\n\n{}", line.repeat(lines));
    let cases = [
        (String::new(), "the blank line is missing"),
        ("text\n".to_owned(), "the blank line is missing"),
        (format!("text\n{line}"), "the blank line is missing"),
        ("text\n\n".to_owned(), "a signature is missing"),
        (format!("text\n\n{}", line.trim_end()), "the newline after the last signature is missing"),
        (
            SPECIFIED_NOTE.replace('\u{2014}', "-"),
            "a signature line is not an em dash, a name and base64 between single spaces",
        ),
        (SPECIFIED_NOTE.replace(" Uw2", "  Uw2"), "a signature is not canonical base64"),
        (SPECIFIED_NOTE.replace("aQM=", "aQN="), "a signature is not canonical base64"),
        (SPECIFIED_NOTE.replace("aQM=", "aQM"), "a signature is not canonical base64"),
        (SPECIFIED_NOTE.replace("/foo", "+foo"), "a key's name is not a word without spaces, control characters and +"),
        (
            SPECIFIED_NOTE.replace("/foo", "/\u{a0}"),
            "a key's name is not a word without spaces, control characters and +",
        ),
        ("text\n\n\u{2014} name AAA=\n".to_owned(), "the key id of a signature is missing"),
        (SPECIFIED_NOTE.replace("\n\n", "\r\n\r\n"), "the note is not free of control characters"),
        (SPECIFIED_NOTE.replace("This", "\tThis"), "the note is not free of control characters"),
        (format!("{}{SPECIFIED_NOTE}", "x".repeat(MAX_NOTE_BYTES)), "the note is longer than 131072 bytes"),
        (many(MAX_SIGNATURES + 1), "there are more than 32 signatures"),
    ];
    for (text, error) in cases {
        assert_eq!(SignedNote::parse(text.as_bytes()).unwrap_err().to_string(), error, "{text:.200}");
    }
    assert_eq!(SignedNote::parse(b"\xff\n\n").unwrap_err().to_string(), "the note is not UTF-8");
    assert_eq!(note(&many(MAX_SIGNATURES)).signatures().len(), MAX_SIGNATURES);
    // The last blank line is the one that counts.
    let poem = "first\n\nsecond\n\n\u{2014} name AAAAAAA=\n";
    assert_eq!(note(poem).text(), "first\n\nsecond\n");
    assert_eq!(note(poem).to_string(), poem);
}

#[test]
fn checkpoints_that_are_none_are_refused_by_what_is_wrong() {
    let root = Hash::OF_NOTHING;
    let whole = format!("example.com/log\n7\n{root}\n");
    assert_eq!(whole.parse::<Checkpoint>().unwrap().to_string(), whole);
    let extended = format!("{whole}more\nand more\n");
    assert_eq!(extended.parse::<Checkpoint>().unwrap().to_string(), extended);
    let size = "the checkpoint's size is not a decimal number up to 2^63 - 1 without leading zeros";
    let origin = "the checkpoint's origin is not 1 to 255 bytes";
    let end = "the checkpoint's end is not lines that are not empty";
    let cases = [
        (String::new(), "the checkpoint's origin is missing"),
        ("example.com/log\n".to_owned(), "the checkpoint's size is missing"),
        (whole.trim_end().to_owned(), "the checkpoint's root is missing"),
        (format!("\n7\n{root}\n"), origin),
        (format!("{}\n7\n{root}\n", "o".repeat(256)), origin),
        (whole.replace("\n7\n", "\n07\n"), size),
        (whole.replace("\n7\n", "\n+7\n"), size),
        (whole.replace("\n7\n", "\n-7\n"), size),
        (whole.replace("\n7\n", "\n\n"), size),
        (whole.replace("\n7\n", "\n00\n"), size),
        (whole.replace("\n7\n", "\n9223372036854775808\n"), size),
        (whole.replace("\n7\n", "\n\u{663}\n"), size),
        (format!("log\n7\n{}\n", &root.to_string()[..40]), "a hash is not 32 bytes"),
        (whole.replace("uFU=", "uFV="), "a hash is not canonical base64"),
        (format!("{whole}more"), end),
        (format!("{whole}\n"), end),
        (format!("{whole}more\n\nand more\n"), end),
    ];
    for (text, error) in cases {
        assert_eq!(text.parse::<Checkpoint>().unwrap_err().to_string(), error, "{text}");
    }
}

#[test]
fn a_public_log_is_believed_with_its_witnesses() {
    let public = SignedNote::parse(PUBLIC).unwrap();
    assert_eq!(public.to_string().as_bytes(), PUBLIC);
    assert_eq!(public.signatures().len(), 6);
    let policy = Policy::new(log_key(PUBLIC_LOG), PUBLIC_WITNESSES.map(witness_key).into(), 4).unwrap();
    let witnessed = policy.check(&public).unwrap();
    assert_eq!(witnessed.checkpoint.head().size, 1_432_088_532);
    // Another time, another signature.
    let names = PUBLIC_WITNESSES.map(|key| witness_key(key).name().clone());
    assert_eq!(witnessed.witnesses, names.map(|name| (name, 1_779_573_024)));
    let later = note(&public.to_string().replace("qEiEgPlfF", "qEiEhPlfF"));
    assert_eq!(policy.check(&later), Err(Distrust::BadSignature(BadSignature("remora.n621.de".parse().unwrap()))));
}

#[test]
fn signing_makes_the_same_bytes_as_another_implementation() {
    let evidence = Evidence::parse(GOLDEN.as_bytes()).unwrap();
    assert_eq!(evidence.to_string(), GOLDEN);
    let golden = golden_policy(1).check(&evidence.checkpoint).unwrap();
    let seed = sha256(b"golden log key");
    let log = LogSigner::from_seed(log_key(GOLDEN_LOG).name().clone(), &seed);
    assert_eq!(log.verifier(), &log_key(GOLDEN_LOG));
    let signed = log.sign(golden.checkpoint.head());
    assert_eq!(signed.text(), evidence.checkpoint.text());
    assert_eq!(signed.signatures(), &evidence.checkpoint.signatures()[..1]);
    assert_eq!(golden.witnesses, [("witness.example.test/w1".parse().unwrap(), 1_700_000_000)]);
}

/// SHA-256 of `text`, from which the keys of the golden file were made.
fn sha256(text: &[u8]) -> [u8; 32] {
    use sha2::Digest as _;
    sha2::Sha256::digest(text).into()
}

#[test]
fn evidence_for_one_event_is_verified_from_the_file_alone() {
    let proven = verify_event(&GOLDEN_EVENT, GOLDEN.as_bytes(), &golden_policy(1)).unwrap();
    assert_eq!(proven.index, 5);
    assert_eq!(proven.seen.checkpoint.head().size, 8);
    assert_eq!(proven.seen.witnesses.len(), 1);
    let other_event = verify_event(&[0x40, 0x41, 0x42], GOLDEN.as_bytes(), &golden_policy(1));
    assert_eq!(other_event, Err(EvidenceError::Proof(ProofError::WrongRoot)));
    let elsewhere = GOLDEN.replace("index 5", "index 4");
    let elsewhere = verify_event(&GOLDEN_EVENT, elsewhere.as_bytes(), &golden_policy(1));
    assert_eq!(elsewhere, Err(EvidenceError::Proof(ProofError::WrongRoot)));
}

#[test]
fn no_byte_of_evidence_can_be_changed() {
    let policy = golden_policy(1);
    for place in 0..GOLDEN.len() {
        for bit in 0..8 {
            let mut changed = GOLDEN.as_bytes().to_vec();
            changed[place] ^= 1 << bit;
            verify_event(&GOLDEN_EVENT, &changed, &policy).unwrap_err();
        }
        let mut without = GOLDEN.as_bytes().to_vec();
        without.remove(place);
        verify_event(&GOLDEN_EVENT, &without, &policy).unwrap_err();
    }
    for end in 0..GOLDEN.len() {
        verify_event(&GOLDEN_EVENT, &GOLDEN.as_bytes()[..end], &policy).unwrap_err();
    }
}

#[test]
fn evidence_may_have_extra_data_that_nothing_vouches_for() {
    let with = GOLDEN.replace("index", "extra aGVsbG8=\nindex");
    let evidence = Evidence::parse(with.as_bytes()).unwrap();
    assert_eq!(evidence.extra.as_deref(), Some(&b"hello"[..]));
    assert_eq!(evidence.to_string(), with);
    verify_event(&GOLDEN_EVENT, with.as_bytes(), &golden_policy(1)).unwrap();
}

#[test]
fn files_that_are_no_evidence_are_refused_by_what_is_wrong() {
    let hash = "yoVOoSjtBQtBs1/8G4e46yveRh6eO1WW7Oa51ZdaCuA=\n";
    let cases = [
        (GOLDEN.replace("@v1", "@v2"), "the first line is not c2sp.org/tlog-proof@v1"),
        (GOLDEN.replace("index 5\n", ""), "the index is missing"),
        (
            GOLDEN.replace("index 5", "index 05"),
            "the index is not a decimal number up to 2^63 - 1 without leading zeros",
        ),
        (GOLDEN.replace("index", "extra %\nindex"), "the extra data is not canonical base64"),
        (GOLDEN.replace(hash, &hash.repeat(62)), "there are more than 63 hashes in the proof"),
        (GOLDEN.replace(hash, "AAAA\n"), "a hash is not 32 bytes"),
        (GOLDEN.replace('\n', "\r\n"), "the proof file is not free of control characters"),
        (format!("{}{GOLDEN}", " ".repeat(300_000)), "the proof file is longer than 262144 bytes"),
    ];
    for (file, error) in cases {
        assert_eq!(Evidence::parse(file.as_bytes()).unwrap_err().to_string(), error, "{file:.200}");
    }
}

#[test]
fn a_policy_is_met_or_says_by_what_not() {
    let checkpoint = Evidence::parse(GOLDEN.as_bytes()).unwrap().checkpoint;
    let stranger = WitnessSigner::from_seed("stranger".parse().unwrap(), &[5; 32]).verifier().clone();
    let with = |witnesses, threshold| Policy::new(log_key(GOLDEN_LOG), witnesses, threshold).unwrap();
    assert_eq!(with(Vec::new(), 0).check(&checkpoint).unwrap().witnesses, []);
    let one_of_two = with(vec![stranger.clone(), witness_key(GOLDEN_WITNESS)], 1);
    assert_eq!(one_of_two.check(&checkpoint).unwrap().witnesses.len(), 1);
    let both = with(vec![stranger, witness_key(GOLDEN_WITNESS)], 2);
    assert_eq!(both.check(&checkpoint), Err(Distrust::NotWitnessed { have: 1, need: 2 }));
    // The log's own signature is missing, or replaced by that of another log's key.
    let unsigned = LogSigner::from_seed(log_key(GOLDEN_LOG).name().clone(), &[6; 32]);
    let policy = Policy::new(unsigned.verifier().clone(), Vec::new(), 0).unwrap();
    assert_eq!(policy.check(&checkpoint), Err(Distrust::Unsigned(unsigned.verifier().name().clone())));
    let policy = Policy::new(log("audit.example.test/org_2").verifier().clone(), Vec::new(), 0).unwrap();
    assert!(matches!(policy.check(&checkpoint), Err(Distrust::OtherLog { .. })));
    assert!(matches!(policy.check(&note(SPECIFIED_NOTE)), Err(Distrust::Format(FormatError::Missing(_)))));
}

#[test]
fn a_policy_counts_keys_and_not_names() {
    let key = |name: &str, seed| WitnessSigner::from_seed(name.parse().unwrap(), &[seed; 32]).verifier().clone();
    let name = |name: &str| name.parse::<KeyName>().unwrap();
    let policy = |witnesses, threshold| Policy::new(log("log").verifier().clone(), witnesses, threshold);
    let twice = policy(vec![key("a", 2), key("b", 3), key("c", 2)], 2);
    assert_eq!(twice.unwrap_err(), PolicyError::SameKey(name("a"), name("c")));
    // `log` is made from the same seed.
    assert_eq!(policy(vec![key("a", 1)], 1).unwrap_err(), PolicyError::OwnKey(name("a")));
    let error = policy(vec![key("a", 2)], 2).unwrap_err();
    assert_eq!(error.to_string(), "2 of 1 witnesses cannot be asked for; there may be 32 at most");
    policy((2..35).map(|seed| key("w", seed)).collect(), 1).unwrap_err();
}

#[test]
fn one_operator_has_a_log_for_each_org_under_one_key() {
    let (one, two) = (log("audit.example.com/org_1"), log("audit.example.com/org_2"));
    assert_eq!(one.verifier().public(), two.verifier().public());
    assert_ne!(one.verifier().id(), two.verifier().id());
    let first = one.sign(head(3));
    // The same bytes under the other's name are a signature of the other key, and an invalid one.
    let renamed = note(&first.to_string().replace("org_1", "org_2"));
    assert_eq!(two.verifier().verify(&renamed), Ok(None));
    let name = two.verifier().name();
    assert_eq!(&one.verifier().named(name.clone()), two.verifier());
    assert_eq!(one.named(name.clone()).sign(head(3)), two.sign(head(3)));
}

proptest! {
    #[test]
    fn hostile_bytes_get_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = SignedNote::parse(&bytes);
        let _ = SignatureLine::parse_all(&bytes);
        let _ = Evidence::parse(&bytes);
        prop_assert!(verify_event(&GOLDEN_EVENT, &bytes, &golden_policy(0)).is_err());
    }

    #[test]
    fn what_is_read_is_written_the_same(
        text in "([ -~äö—]{0,20}\n){1,4}",
        lines in proptest::collection::vec(("[!-*,-~ä]{1,9}", proptest::collection::vec(any::<u8>(), 4..80)), 1..5),
    ) {
        let line = |(name, bytes): (String, Vec<u8>)| {
            let (key_id, signature) = bytes.split_first_chunk().unwrap();
            format!("{}\n", SignatureLine { name: name.parse().unwrap(), key_id: *key_id, signature: signature.into() })
        };
        let written = format!("{text}\n{}", lines.into_iter().map(line).collect::<String>());
        let read = note(&written);
        prop_assert_eq!(read.text(), text);
        prop_assert_eq!(read.to_string(), written);
    }
}
