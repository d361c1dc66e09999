//! Bytes that are mostly text, as a string of JSON: each as the character of its number, which of ASCII is itself. As numbers,
//! a config of two kilobytes would cost more instructions than all else of a call with nothing to do.
//!
//! For what goes through a pipe between two of our own processes; not for files, which others read.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serializer};

pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    if let Some(text) = std::str::from_utf8(bytes).ok().filter(|text| text.is_ascii()) {
        return serializer.serialize_str(text);
    }
    let text: String = bytes.iter().map(|byte| char::from(*byte)).collect();
    serializer.serialize_str(&text)
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_ascii() {
        return Ok(text.into_bytes());
    }
    let bytes = text.chars().map(u8::try_from).collect::<Result<Vec<u8>, _>>();
    bytes.map_err(|_| D::Error::custom("it is no text of bytes"))
}

#[cfg(test)]
mod tests {
    use serde::Serialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct One(#[serde(with = "super")] Vec<u8>);

    #[test]
    fn every_byte_is_itself_again_and_text_is_read_as_such() {
        let all = One((0..=u8::MAX).collect());
        let json = serde_json::to_string(&all).unwrap();
        assert_eq!(serde_json::from_str::<One>(&json).unwrap(), all);
        assert_eq!(
            serde_json::to_string(&One(b"cores: 4".to_vec())).unwrap(),
            "\"cores: 4\""
        );
        assert!(serde_json::from_str::<One>("\"\u{20ac}\"").is_err());
    }
}
