//! How a rotation takes a path over and writes its versions.

use base::{CanonPath, Refusal};
use engine::{Key, Mount, Prefix, Publish, Tx};
use serde_json::value::RawValue;

use super::Kv;
use super::config::Config;
use super::record::{Place, Record};

/// The table of all claims of a mount: `data/` path → rotation. That a path is claimed stands in its record too, for those who write it.
const CLAIM: &str = "claim";

impl Publish for Kv {
    fn claim(&self, tx: &mut Tx, mount: &Mount, path: &CanonPath, rotation: Option<&str>) -> Result<(), Refusal> {
        let place = place(mount, path)?;
        let row = claim_key(mount, path);
        let record = Record::load(tx, &place)?;
        if let (Some(rotation), Some(other)) = (rotation, record.as_ref().and_then(|record| record.managed.as_deref()))
            && other != rotation
        {
            return Err(managed_by(other));
        }
        match rotation {
            Some(rotation) => tx.write(&row, &rotation)?,
            None => tx.delete(&row)?,
        }
        match (rotation, record) {
            (None, None) => Ok(()),
            // the claim was all there was
            (None, Some(record)) if record.current == 0 && record.custom.is_none() => record.remove(tx, &place),
            (None, Some(mut record)) => {
                record.managed = None;
                record.save(tx, &place)
            }
            (Some(rotation), record) => {
                let mut record = record.unwrap_or_else(|| Record::new(tx.now()));
                if record.managed.is_some() {
                    return Ok(());
                }
                record.managed = Some(rotation.to_owned());
                record.save(tx, &place)
            }
        }
    }

    fn claimant(&self, tx: &mut Tx, mount: &Mount) -> Result<Option<String>, Refusal> {
        let rows = tx.scan(&Prefix::new(mount.scope(), CLAIM, &[]), None, 1)?;
        let Some(row) = rows.first() else { return Ok(None) };
        let rotation = serde_json::from_slice(row.value.expose());
        rotation.map(Some).map_err(|_| Refusal::internal(format!("the claim of `{}` could not be read", row.id)))
    }

    fn publish(&self, tx: &mut Tx, mount: &Mount, path: &CanonPath, rotation: &str, value: &RawValue) -> Result<u64, Refusal> {
        let place = place(mount, path)?;
        let unclaimed = || Refusal::invalid(format!("this secret is not managed by the rotation `{rotation}`"));
        let mut record = Record::load(tx, &place)?.ok_or_else(unclaimed)?;
        match &record.managed {
            Some(manager) if manager == rotation => {}
            Some(other) => return Err(managed_by(other)),
            None => return Err(unclaimed()),
        }
        if !value.get().starts_with('{') {
            return Err(Refusal::internal("a value to publish is not an object"));
        }
        let config = Config::load(tx, mount)?;
        record.add(tx, &place, &config, value)
    }

    fn secrets(&self, tx: &mut Tx, mount: &Mount, limit: usize) -> Result<Vec<(CanonPath, Option<String>)>, Refusal> {
        let (mut found, mut folders) = (Vec::new(), vec![String::new()]);
        // Folder by folder: names are known without a secret being opened.
        while let Some(folder) = folders.pop() {
            let room = limit.saturating_sub(found.len());
            if room == 0 {
                break;
            }
            for name in tx.list(&Place::folder(mount, &folder), None, room)? {
                if name.ends_with('/') {
                    folders.push(format!("{folder}{name}"));
                    continue;
                }
                let path = CanonPath::from_plain(&format!("data/{folder}{name}")).map_err(|e| Refusal::internal(e.to_string()))?;
                let rotation = tx.read(&claim_key(mount, &path))?;
                found.push((path, rotation));
            }
        }
        Ok(found)
    }
}

fn claim_key(mount: &Mount, path: &CanonPath) -> Key {
    Key::new(mount.scope(), CLAIM, &[path.as_str()])
}

fn place(mount: &Mount, path: &CanonPath) -> Result<Place, Refusal> {
    let wrong = || Refusal::invalid("a managed secret of a kv mount is named by its `data/` path, as clients read it");
    let data = CanonPath::from_plain("data").map_err(|_| wrong())?;
    let path = path.below(&data).filter(|path| !path.is_folder()).ok_or_else(wrong)?;
    Place::at(mount, &path)
}

fn managed_by(rotation: &str) -> Refusal {
    Refusal::invalid(format!("this secret is managed by the rotation `{rotation}`"))
}

#[cfg(test)]
mod tests {
    use base::Kind;
    use serde_json::json;

    use crate::bench::Bench;

    #[test]
    fn a_claimed_path_is_written_by_its_rotation_alone() {
        let kv = Bench::kv();
        kv.write("data/orders/db", r#"{"data":{"password":"first"}}"#).data();
        kv.claim("data/orders/db", Some("orders-db")).unwrap();
        kv.claim("data/orders/db", Some("orders-db")).unwrap();
        assert_eq!(kv.publish("data/orders/db", "orders-db", r#"{"password":"second"}"#).unwrap(), 2);
        assert_eq!(kv.read("data/orders/db").json()["data"], json!({"password": "second"}));

        let writes = [
            kv.write("data/orders/db", r#"{"data":{"password":"mine"}}"#),
            kv.patch("data/orders/db", r#"{"data":{"password":"mine"}}"#),
            kv.delete("data/orders/db"),
            kv.write("delete/orders/db", r#"{"versions":[2]}"#),
            kv.write("undelete/orders/db", r#"{"versions":[1]}"#),
            kv.write("destroy/orders/db", r#"{"versions":[2]}"#),
            kv.write("metadata/orders/db", r#"{"max_versions":1}"#),
            kv.patch("metadata/orders/db", r#"{"max_versions":1}"#),
            kv.delete("metadata/orders/db"),
        ];
        for write in writes {
            write.invalid("managed by the rotation `orders-db`");
        }
        assert_eq!(kv.read("data/orders/db").json()["metadata"]["version"], 2);

        assert_eq!(kv.claim("data/orders/db", Some("other")).unwrap_err().kind, Kind::Invalid);
        assert!(kv.publish("data/orders/db", "other", "{}").unwrap_err().errors[0].contains("`orders-db`"));
        assert_eq!(kv.claimant().as_deref(), Some("orders-db"));
        kv.claim("data/orders/db", None).unwrap();
        assert_eq!(kv.claimant(), None);
        kv.publish("data/orders/db", "orders-db", "{}").unwrap_err();
        kv.write("data/orders/db", r#"{"data":{"password":"mine"}}"#).data();
    }

    #[test]
    fn a_path_may_be_claimed_before_it_exists() {
        let kv = Bench::kv();
        kv.publish("data/new", "p", "{}").unwrap_err();
        kv.claim("data/new", Some("p")).unwrap();
        kv.read("data/new").missing();
        kv.write("data/new", r#"{"data":{}}"#).invalid("`p`");
        assert_eq!(kv.publish("data/new", "p", r#"{"a":1}"#).unwrap(), 1);
        // given back without a version, nothing is left
        kv.claim("data/never", Some("p")).unwrap();
        kv.claim("data/never", None).unwrap();
        kv.list("metadata/").keys("new");
        kv.claim("data/nothing", None).unwrap();
        for path in ["new", "metadata/new", "data", "data/", "data/new/"] {
            assert_eq!(kv.claim(path, Some("p")).unwrap_err().kind, Kind::Invalid, "{path}");
        }
    }

    #[test]
    fn secrets_are_listed_with_their_rotations() {
        let kv = Bench::kv();
        assert_eq!(kv.secrets(10), "");
        for path in ["a", "a/b", "é/c/d", "z"] {
            kv.write(&format!("data/{path}"), r#"{"data":{}}"#).data();
        }
        kv.claim("data/a/b", Some("p")).unwrap();
        kv.claim("data/never", Some("q")).unwrap();
        assert_eq!(kv.secrets(10), "data/a data/never=q data/z data/é/c/d data/a/b=p");
        assert_eq!(kv.secrets(2).split(' ').count(), 2);
    }

    #[test]
    fn required_check_and_set_does_not_stop_a_rotation() {
        let kv = Bench::kv();
        kv.write("config", r#"{"cas_required":true}"#).nothing();
        kv.claim("data/a", Some("p")).unwrap();
        assert_eq!(kv.publish("data/a", "p", r#"{"a":1}"#).unwrap(), 1);
    }
}
