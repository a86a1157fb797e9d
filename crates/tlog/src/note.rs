//! Signed notes (C2SP signed-note): a text and the signatures over it.

use crate::Error;
use crypto::encode::{base64, from_base64};
use crypto::hash::sha256;
use crypto::sign::{self, SigningKey};
use std::fmt;

/// Largest note that is parsed.
pub const NOTE_BYTES_MAX: usize = 64 * 1024;
/// Most signature lines of one note.
pub const SIGNATURES_MAX: usize = 64;
/// What a signature line begins with: an em dash and a space.
const PREFIX: &str = "\u{2014} ";

/// How a signature is made; the first byte of the key material in a [`Vkey`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// Type 0x01: Ed25519 over the text of the note.
    Ed25519,
    /// Type 0x04: Ed25519 over a time and the text of a checkpoint, as witnesses make it.
    CosignatureV1,
}

impl Algorithm {
    fn byte(self) -> u8 {
        match self {
            Algorithm::Ed25519 => 0x01,
            Algorithm::CosignatureV1 => 0x04,
        }
    }
}

/// A verifier key: whose signature counts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Vkey {
    name: String,
    id: [u8; 4],
    algorithm: Algorithm,
    public: [u8; 32],
}

impl Vkey {
    /// The key of `name`.
    pub fn new(name: &str, algorithm: Algorithm, public: [u8; 32]) -> Result<Vkey, Error> {
        check_name(name)?;
        Ok(Vkey { name: name.to_owned(), id: key_id(name, algorithm, &public), algorithm, public })
    }

    /// Parses `name+hash+base64`.
    pub fn parse(text: &str) -> Result<Vkey, Error> {
        let mut parts = text.splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(Error::Vkey("not three parts joined by a plus"));
        };
        let key = from_base64(key).ok_or(Error::Vkey("key is not base64"))?;
        let (algorithm, public) = match key.split_first() {
            Some((1, public)) => (Algorithm::Ed25519, public),
            Some((4, public)) => (Algorithm::CosignatureV1, public),
            _ => return Err(Error::Vkey("unknown type")),
        };
        let public = public.try_into().map_err(|_| Error::Vkey("key is not 32 bytes"))?;
        let vkey = Vkey::new(name, algorithm, public)?;
        if crypto::encode::hex(&vkey.id) == id { Ok(vkey) } else { Err(Error::Vkey("key id does not match")) }
    }

    /// The name, which for a log is its origin.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether `line` is by this key and holds for `text`. `None` when it is by another key.
    fn check(&self, line: &SignatureLine, text: &str) -> Option<bool> {
        if line.name != self.name || line.id != self.id {
            return None;
        }
        Some(match self.algorithm {
            Algorithm::Ed25519 => sign::verify(&self.public, text.as_bytes(), &line.signature),
            Algorithm::CosignatureV1 => line.signature.split_first_chunk::<8>().is_some_and(|(time, signature)| {
                let message = format!("cosignature/v1\ntime {}\n{text}", u64::from_be_bytes(*time));
                sign::verify(&self.public, message.as_bytes(), signature)
            }),
        })
    }
}

impl fmt::Display for Vkey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut key = vec![self.algorithm.byte()];
        key.extend_from_slice(&self.public);
        write!(f, "{}+{}+{}", self.name, crypto::encode::hex(&self.id), base64(&key))
    }
}

/// A name and the key that signs under it (type 0x01).
pub struct Signer<'a> {
    vkey: Vkey,
    key: &'a SigningKey,
}

impl<'a> Signer<'a> {
    /// A signer for `name`.
    pub fn new(name: &str, key: &'a SigningKey) -> Result<Signer<'a>, Error> {
        Ok(Signer { vkey: Vkey::new(name, Algorithm::Ed25519, key.public())?, key })
    }

    /// The key that verifies what this signs.
    pub fn vkey(&self) -> &Vkey {
        &self.vkey
    }

    /// Signs `text`, which must end in a newline, and returns the whole note.
    pub fn sign(&self, text: &str) -> Result<String, Error> {
        check_text(text)?;
        let mut blob = self.vkey.id.to_vec();
        blob.extend_from_slice(&self.key.sign(text.as_bytes()));
        Ok(format!("{text}\n{PREFIX}{} {}\n", self.vkey.name, base64(&blob)))
    }
}

/// One line below the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignatureLine {
    /// Name of the signer.
    pub name: String,
    /// First bytes of the hash of name and key.
    pub id: [u8; 4],
    /// What follows the key id.
    pub signature: Vec<u8>,
}

/// A parsed note. Parsing says nothing about who signed it: [`Note::verify`] does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    text: String,
    signatures: Vec<SignatureLine>,
}

impl Note {
    /// Splits text and signature lines.
    pub fn parse(bytes: &[u8]) -> Result<Note, Error> {
        if bytes.len() > NOTE_BYTES_MAX {
            return Err(Error::Note("too long"));
        }
        let whole = std::str::from_utf8(bytes).map_err(|_| Error::Note("not utf-8"))?;
        check_text(whole)?;
        let end = whole.rfind("\n\n").ok_or(Error::Note("no signatures"))?;
        let (text, lines) = whole.split_at_checked(end + 1).ok_or(Error::Note("no signatures"))?;
        let lines = lines.strip_prefix('\n').unwrap_or(lines);
        let signatures = lines.split_terminator('\n').map(signature_line).collect::<Result<Vec<_>, _>>()?;
        match signatures.len() {
            0 => Err(Error::Note("no signatures")),
            1..=SIGNATURES_MAX => Ok(Note { text: text.to_owned(), signatures }),
            _ => Err(Error::Note("too many signatures")),
        }
    }

    /// The signed text, with its final newline. Trust it only after [`Note::verify`].
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The signature lines, verified or not.
    pub fn signatures(&self) -> &[SignatureLine] {
        &self.signatures
    }

    /// The known keys whose signatures hold. Lines by unknown keys are passed over; a line by a known key that does not
    /// hold refuses the note.
    pub fn verify<'k>(&self, known: &'k [Vkey]) -> Result<Vec<&'k Vkey>, Error> {
        let mut holds: Vec<&Vkey> = Vec::new();
        for line in &self.signatures {
            for vkey in known {
                match vkey.check(line, &self.text) {
                    Some(true) if !holds.contains(&vkey) => holds.push(vkey),
                    Some(true) | None => {}
                    Some(false) => return Err(Error::BadSignature(vkey.name.clone())),
                }
            }
        }
        if holds.is_empty() { Err(Error::UnknownKey) } else { Ok(holds) }
    }
}

fn signature_line(line: &str) -> Result<SignatureLine, Error> {
    let (name, blob) = line.strip_prefix(PREFIX).and_then(|rest| rest.split_once(' ')).ok_or(Error::Note("signature line"))?;
    check_name(name).map_err(|_| Error::Note("signature name"))?;
    let blob = from_base64(blob).ok_or(Error::Note("signature is not base64"))?;
    match blob.split_first_chunk::<4>() {
        Some((id, signature)) if !signature.is_empty() => {
            Ok(SignatureLine { name: name.to_owned(), id: *id, signature: signature.to_vec() })
        }
        _ => Err(Error::Note("signature is too short")),
    }
}

fn check_text(text: &str) -> Result<(), Error> {
    if !text.ends_with('\n') {
        return Err(Error::Note("does not end in a newline"));
    }
    if text.bytes().any(|byte| byte < 0x20 && byte != b'\n') {
        return Err(Error::Note("control character"));
    }
    Ok(())
}

/// A key name: not empty, no Unicode space, no plus, and no control character, so that it can stand in a note.
pub fn check_name(name: &str) -> Result<(), Error> {
    if name.is_empty() || name.chars().any(|c| c.is_whitespace() || c.is_control() || c == '+') {
        return Err(Error::KeyName(name.to_owned()));
    }
    Ok(())
}

fn key_id(name: &str, algorithm: Algorithm, public: &[u8; 32]) -> [u8; 4] {
    let mut input = name.as_bytes().to_vec();
    input.extend_from_slice(&[b'\n', algorithm.byte()]);
    input.extend_from_slice(public);
    let [a, b, c, d, ..] = sha256(&input);
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;
    use signed_note::{StandardVerifier, VerifierList};

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed(&[seed; 32]).unwrap()
    }

    fn vkey(name: &str, seed: u8) -> Vkey {
        Vkey::new(name, Algorithm::Ed25519, key(seed).public()).unwrap()
    }

    #[test]
    fn a_note_of_ours_opens_with_an_independent_implementation() {
        let key = key(1);
        let signer = Signer::new("cluster/change", &key).unwrap();
        let note = signer.sign("cluster/change\n0\nroot\n\nmore text\n").unwrap();
        let theirs = signed_note::Note::from_bytes(note.as_bytes()).unwrap();
        let verifier = StandardVerifier::new(&signer.vkey().to_string()).unwrap();
        let (verified, unknown) = theirs.verify(&VerifierList::new(vec![Box::new(verifier)])).unwrap();
        assert_eq!((verified.len(), unknown.len()), (1, 0));
        let ours = Note::parse(note.as_bytes()).unwrap();
        assert_eq!(ours.text().as_bytes(), theirs.text());
        assert_eq!(ours.verify(&[vkey("cluster/change", 1)]).unwrap(), [signer.vkey()]);
    }

    #[test]
    fn only_a_known_key_counts_and_a_broken_line_of_one_refuses() {
        let (one, two) = (key(1), key(2));
        let text = "hello\n";
        let note = Signer::new("a", &one).unwrap().sign(text).unwrap();
        let second = Signer::new("b", &two).unwrap().sign(text).unwrap();
        let both = format!("{note}{}", second.strip_prefix("hello\n\n").unwrap());
        let both = Note::parse(both.as_bytes()).unwrap();
        assert_eq!(both.verify(&[vkey("a", 1)]).unwrap().len(), 1);
        assert_eq!(both.verify(&[vkey("a", 1), vkey("b", 2)]).unwrap().len(), 2);
        // same name, another key: another key id, so unknown
        assert_eq!(both.verify(&[vkey("a", 3)]), Err(Error::UnknownKey));
        assert_eq!(both.verify(&[vkey("c", 1)]), Err(Error::UnknownKey));
        let altered = Note::parse(note.replace("hello", "hallo").as_bytes()).unwrap();
        assert_eq!(altered.verify(&[vkey("a", 1)]), Err(Error::BadSignature("a".to_owned())));
    }

    #[test]
    fn malformed_notes_are_refused() {
        let good = Signer::new("a", &key(1)).unwrap().sign("hello\n").unwrap();
        assert!(Note::parse(good.as_bytes()).is_ok());
        let line = good.strip_prefix("hello\n\n").unwrap();
        for bad in [
            String::new(),
            "\n".to_owned(),
            "hello\n".to_owned(),
            "hello\n\n".to_owned(),
            good.trim_end().to_owned(),
            format!("hello\n{line}"),
            good.replace('\u{2014}', "-"),
            good.replace(" a ", " a  "),
            good.replace(" a ", " "),
            good.replace(" a ", " a+b "),
            good.replace(" a ", " a\u{2003}b "),
            good.replace("hello", "hel\tlo"),
            good.replace("hello", "hel\0lo"),
            good.replace("hello", "hel\rlo"),
            format!("{good}\n"),
            format!("{good}trailing\n"),
            "hello\n\n\u{2014} a AAAAAA==\n".to_owned(),
            format!("hello\n\n{}", line.repeat(SIGNATURES_MAX + 1)),
        ] {
            assert!(Note::parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(Note::parse(b"hel\xfflo\n\n").is_err());
        assert!(Note::parse(&vec![b'a'; NOTE_BYTES_MAX + 1]).is_err());
    }

    #[test]
    fn verifier_keys_are_written_and_read() {
        let vkey = vkey("cluster/access/node-1", 5);
        assert_eq!(Vkey::parse(&vkey.to_string()).unwrap(), vkey);
        let text = vkey.to_string();
        for bad in [
            "".to_owned(),
            "a+b".to_owned(),
            text.replace("node-1", "node-2"),
            text.replace("+", " "),
            format!("{text}A"),
            text.replacen('+', "+0", 1),
        ] {
            assert!(Vkey::parse(&bad).is_err(), "{bad}");
        }
        for name in ["", "a b", "a+b", "a\u{a0}b", "a\nb", "a\0b"] {
            assert!(Vkey::new(name, Algorithm::Ed25519, [0; 32]).is_err(), "{name:?}");
        }
    }

    #[test]
    fn the_published_example_of_the_go_implementation_signs_to_the_same_bytes() {
        // golang.org/x/mod/sumdb/note: key and output are fixed there
        let seed = crypto::encode::from_base64("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz").unwrap();
        let key = SigningKey::from_seed(&seed[1..]).unwrap();
        let signer = Signer::new("PeterNeumann", &key).unwrap();
        assert_eq!(signer.vkey().to_string(), "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW");
        let text = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n";
        assert_eq!(
            signer.sign(text).unwrap(),
            format!(
                "{text}\n\u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
            )
        );
    }
}
