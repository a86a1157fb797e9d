//! Other people's data and other people's code.
//!
//! The public vectors are read from the folder that `KEYWARD_VECTORS` names; without it those tests say that they were
//! skipped. The comparisons with an independent implementation always run.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stderr, reason = "helpers of tests fail the test")]

mod oracle;

use crypto::encode::from_base64;
use crypto::sign::SigningKey;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use tlog::{Checkpoint, Hash, Note, Signer, Tile, Tree, Vkey, bundle, leaf_hash, merkle, tile};

/// The folder of vectors, or nothing and a word about it.
fn vectors(what: &str) -> Option<PathBuf> {
    let found = std::env::var_os("KEYWARD_VECTORS").map(PathBuf::from);
    if found.is_none() {
        eprintln!("skipped: {what} need `KEYWARD_VECTORS`");
    }
    found
}

/// Every JSON file below a folder.
fn cases(folder: &Path) -> Vec<(PathBuf, Value)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(cases(&path));
        } else if path.extension().is_some_and(|extension| extension == "json") {
            let value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            found.push((path, value));
        }
    }
    found
}

/// A hash, if it is one: texts of other lengths have no type here, so they are refused before the code under test.
fn hash(value: &Value) -> Option<Hash> {
    from_base64(value.as_str()?)?.try_into().ok()
}

/// A root of the consistency vectors, some of which only care whether two roots are equal (`don't care 2`): a hash of the text
/// stands for it, so that equal texts stay equal and the case still reaches the code under test.
fn root(value: &Value) -> Option<Hash> {
    let bytes = from_base64(value.as_str()?)?;
    Some(Hash::try_from(bytes.as_slice()).unwrap_or_else(|_| crypto::hash::sha256(&[b"stands for ", &bytes[..]].concat())))
}

fn proof(value: &Value) -> Option<Vec<Hash>> {
    value.as_array().map_or(Some(Vec::new()), |steps| steps.iter().map(hash).collect())
}

/// Runs `holds` over every case and compares with what the case wants; gives the number of positive and negative ones.
fn run(folder: &Path, holds: impl Fn(&Value) -> Option<bool>) -> (usize, usize) {
    let (mut positive, mut negative) = (0, 0);
    for (path, case) in cases(folder) {
        let refused = case["wantErr"].as_bool().unwrap();
        assert_eq!(holds(&case).unwrap_or(false), !refused, "{}: {}", path.display(), case["desc"]);
        if refused { negative += 1 } else { positive += 1 }
    }
    (positive, negative)
}

#[test]
fn inclusion_proofs_of_the_public_vectors() {
    let Some(folder) = vectors("inclusion proofs") else { return };
    let holds = |case: &Value| {
        let (index, size) = (case["leafIdx"].as_u64()?, case["treeSize"].as_u64()?);
        let (leaf, root, proof) = (hash(&case["leafHash"])?, hash(&case["root"])?, proof(&case["proof"])?);
        Some(merkle::verify_inclusion(index, size, &leaf, &proof, &root).is_ok())
    };
    assert_eq!(run(&folder.join("merkle/inclusion"), holds), (6, 92));
}

#[test]
fn consistency_proofs_of_the_public_vectors() {
    let Some(folder) = vectors("consistency proofs") else { return };
    let holds = |case: &Value| {
        let (old, new) = (case["size1"].as_u64()?, case["size2"].as_u64()?);
        let (old_root, new_root, proof) = (root(&case["root1"])?, root(&case["root2"])?, proof(&case["proof"])?);
        Some(merkle::verify_consistency(old, new, &proof, &old_root, &new_root).is_ok())
    };
    assert_eq!(run(&folder.join("merkle/consistency"), holds), (6, 92));
}

/// A small public log, whose signing key is public too: we make the same log and compare every byte.
#[test]
fn the_small_public_log_comes_out_byte_for_byte() {
    let Some(folder) = vectors("a small log") else { return };
    let folder = folder.join("tessera-log");
    let entries =
        ["one", "two", "three", "four", "five", "six", "seven", "eit", "nain", "ten", "ileven", "twelf", "threeten", "fourten", "fivten"];
    let origin = "example.com/log/testdata";
    let seed = from_base64("AeymY/SZAX0jZcJ8enZ5FY1Dz+wTML2yWSkK+9DSF3eg").unwrap();
    let key = SigningKey::from_seed(&seed[1..]).unwrap();
    let signer = Signer::new(origin, &key).unwrap();
    let vkey = Vkey::parse("example.com/log/testdata+33d7b496+AeHTu4Q3hEIMHNqc6fASMsq3rKNx280NI+oO5xCFkkSx").unwrap();
    assert_eq!(signer.vkey(), &vkey);
    let mut tree = Tree::default();
    let mut compared = 0;
    for size in 0..=entries.len() {
        if size > 0 {
            tree.push(leaf_hash(entries[size - 1].as_bytes()));
        }
        let checkpoint = Checkpoint { origin: origin.to_owned(), size: size as u64, root: tree.root(), extensions: vec![] };
        let public = fs::read_to_string(folder.join(format!("checkpoint.{size}"))).unwrap();
        assert_eq!(Checkpoint::open(public.as_bytes(), std::slice::from_ref(&vkey)).unwrap(), checkpoint);
        assert_eq!(checkpoint.sign(&signer).unwrap(), public);
        for file in Tile::all(size as u64) {
            let ours = match file {
                Tile::Hashes { level, index, width } => tree.tile(level, index, width).unwrap(),
                Tile::Entries { .. } => bundle::encode(&entries[..size]).unwrap(),
            };
            assert_eq!(fs::read(folder.join(file.path())).unwrap(), ours, "{}", file.path());
            compared += 1;
        }
    }
    assert_eq!(compared, 30);
}

/// A public log of 300 leaves as a mirror keeps it, with the mirror's and a witness's cosignatures.
#[test]
fn a_mirrored_log_of_300_leaves() {
    let Some(folder) = vectors("a mirrored log") else { return };
    let folder = folder.join("sunlight-witness");
    let origin_hash = crypto::encode::hex(&crypto::hash::sha256(b"rome2026h1.example.org"));
    let mirror = folder.join("mirror").join(&origin_hash);
    let vkey = |file: &str| {
        let described: Value = serde_json::from_slice(&fs::read(folder.join(file)).unwrap()).unwrap();
        Vkey::parse(described["verifier_keys"][0].as_str().unwrap()).unwrap()
    };
    let (of_mirror, of_witness) = (vkey("mirror/mirror.v0.json"), vkey("witness.v0.json"));
    let note = Note::parse(&fs::read(mirror.join("checkpoint")).unwrap()).unwrap();
    assert_eq!(note.verify(std::slice::from_ref(&of_mirror)).unwrap(), [&of_mirror]);
    let checkpoint = Checkpoint::parse_text(note.text()).unwrap();
    let witnessed = Note::parse(&fs::read(folder.join(&origin_hash).join("checkpoint")).unwrap()).unwrap();
    assert_eq!(witnessed.verify(&[of_mirror, of_witness.clone()]).unwrap(), [&of_witness]);

    // the entries of that log are of another kind; the hashes are what can be compared
    let mut tree = Tree::default();
    for file in Tile::level(checkpoint.size, 0) {
        let bytes = fs::read(mirror.join(file.path())).unwrap();
        for hash in tile::hashes(&bytes).unwrap() {
            tree.push(*hash);
        }
    }
    assert_eq!((tree.size(), tree.root()), (300, checkpoint.root));
    assert_eq!(fs::read(mirror.join("tile/1/000.p/1")).unwrap(), tree.tile(1, 0, 1).unwrap());
    let first = fs::read(mirror.join("tile/0/000")).unwrap();
    assert_eq!(tile::root_of_full(tile::hashes(&first).unwrap()), Some(tree.node(8, 0).unwrap()));
}
