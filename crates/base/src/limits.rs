//! Every limit of the edge has a name here.

use std::time::Duration;

/// What a request may be at most. One value is made at start and passed to whoever enforces it.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a request body.
    pub body_bytes_max: usize,
    /// Bytes of the body of a request that needs no token, such as a login: whoever is known to nobody costs little memory.
    pub anonymous_body_bytes_max: usize,
    /// Bytes of one header block, all fields together.
    pub header_bytes_max: usize,
    /// Header fields in one request.
    pub header_fields_max: usize,
    /// Bytes of a token as presented.
    pub token_bytes_max: usize,
    /// Nesting of objects and arrays in a JSON body.
    pub json_depth_max: usize,
    /// Strings in a JSON body, names of members included.
    pub json_strings_max: usize,
    /// Bytes of the name of one member.
    pub json_key_bytes_max: usize,
    /// Characters of one number.
    pub json_number_bytes_max: usize,
    /// Time to read the header block.
    pub header_timeout: Duration,
    /// Time to read the body.
    pub body_timeout: Duration,
    /// Time that a request waits for the act at an outside system that it has owed. With the time for its body less than
    /// `request_timeout`: who knows what is waited for says so before the request is given up.
    pub act_timeout: Duration,
    /// Time until a reply must have left; streams are exempt.
    pub request_timeout: Duration,
    /// Open connections.
    pub connections_max: usize,
    /// Open push streams.
    pub streams_max: usize,
    /// Open push streams of one principal, so that no tenant can take them all.
    pub streams_per_principal_max: usize,
    /// Keys in one page of a list.
    pub list_page_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes_max: 1 << 20,
            anonymous_body_bytes_max: 16 << 10,
            header_bytes_max: 16 << 10,
            header_fields_max: 64,
            token_bytes_max: 8 << 10,
            json_depth_max: 32,
            json_strings_max: 1_000,
            json_key_bytes_max: 512,
            json_number_bytes_max: 64,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            act_timeout: Duration::from_secs(50),
            request_timeout: Duration::from_secs(90),
            connections_max: 4_096,
            streams_max: 3_072,
            streams_per_principal_max: 1_024,
            list_page_max: 10_000,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_outlives_what_it_waits_for() {
        let limits = Limits::default();
        assert!(limits.body_timeout + limits.act_timeout < limits.request_timeout);
    }
}
