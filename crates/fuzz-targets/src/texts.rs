//! Fuzz targets for texts that users type or store: an Endpoint ID, a pairing code, the key file.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use data_encoding::HEXLOWER_PERMISSIVE;
use paramedic_link::key_file::{self, KeyFileError};
use paramedic_link::pairing_code::PairingCode;
use paramedic_link::{EndpointId, SecretKey};
use zeroize::Zeroizing;

use crate::scratch;

/// Fuzz target: parses the input as an Endpoint ID.
pub fn endpoint_id(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    match text.parse::<EndpointId>() {
        Ok(id) => {
            let printed = id.to_string();
            assert_eq!(printed.len(), "PP".len() + 14 * "-XXXX".len());
            assert_eq!(printed.parse(), Ok(id));
            assert_eq!(printed.to_lowercase().parse(), Ok(id));
            assert_eq!(EndpointId::from_bytes(*id.as_bytes()), id);
            each_replaced_digit(&printed, "PP-".len(), |mistyped| {
                assert!(mistyped.parse::<EndpointId>().is_err(), "{mistyped} passes for {printed}");
            });
        }
        Err(why) => assert!(why.to_string().len() < 200),
    }
    // Any 32 bytes are an Endpoint ID.
    let id = EndpointId::from_bytes(crate::framing::padded(input));
    assert_eq!(id.to_string().parse(), Ok(id));
}

/// Fuzz target: parses the input as a pairing code.
pub fn pairing_code(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    match text.parse::<PairingCode>() {
        Ok(code) => {
            let printed = code.to_string();
            assert_eq!(printed.len(), 8 * 4 + 7);
            let again = printed.parse::<PairingCode>();
            let again = again.unwrap_or_else(|why| panic!("{printed} is not read again: {why}"));
            assert_eq!((again.pin(), again.to_string()), (code.pin(), printed.clone()));
            assert!(!format!("{code:?}").contains(&printed), "the code is a secret");
            each_replaced_digit(&printed, 0, |mistyped| {
                assert!(mistyped.parse::<PairingCode>().is_err(), "{mistyped} passes for {printed}");
            });
        }
        Err(why) => assert!(why.to_string().len() < 200),
    }
}

/// Calls `check` for each digit of `printed` from byte `begin` on, with a copy of the text in which this digit is
/// replaced.
fn each_replaced_digit(printed: &str, begin: usize, mut check: impl FnMut(&str)) {
    for at in (begin..printed.len()).filter(|at| printed.as_bytes()[*at] != b'-') {
        let other = if printed.as_bytes()[at] == b'7' { "8" } else { "7" };
        let mut mistyped = printed.to_owned();
        mistyped.replace_range(at..=at, other);
        check(&mistyped);
    }
}

/// Fuzz target: loads the input as the contents of a key file.
pub fn key_file(input: &[u8]) {
    let loaded = scratch::in_folder(|folder| {
        let path = folder.join("identity.key");
        scratch::write(&path, input);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("a file of our own");
        key_file::load(&path)
    });
    // The only valid content is the name of the format followed by 64 hexadecimal digits.
    let seed = std::str::from_utf8(input).ok().and_then(|text| {
        let digits = text.trim_end().strip_prefix("packetparamedic-key-v1 ")?;
        let seed = HEXLOWER_PERMISSIVE.decode(digits.as_bytes()).ok()?;
        <[u8; SecretKey::LEN]>::try_from(seed).ok()
    });
    match (loaded, seed) {
        (Ok(key), Some(seed)) => {
            let expected = SecretKey::from_seed(Zeroizing::new(seed)).expect("any seed is a key");
            assert_eq!(key.id(), expected.id());
        }
        (Err(KeyFileError::Corrupt { .. }), None) => {}
        // The program does not read a file of this length to its end.
        (Err(KeyFileError::Corrupt { .. }), Some(_)) => assert!(input.len() >= 256),
        (loaded, seed) => panic!("{loaded:?}, and the text holds {seed:?}"),
    }
}
