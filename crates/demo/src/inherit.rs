//! What a service inherits from its supervisor: a listening socket, and a way to say that it is ready.

use std::os::fd::AsFd as _;
use std::os::unix::net::UnixDatagram;

use tokio::net::TcpListener;

/// The listening socket that the supervisor owns, inherited as standard input.
pub(crate) fn listener() -> Result<TcpListener, String> {
    let said = |e: std::io::Error| format!("standard input is not a listening socket: {e}");
    let socket = std::io::stdin().as_fd().try_clone_to_owned().map_err(said)?;
    let socket = std::net::TcpListener::from(socket);
    socket.set_nonblocking(true).map_err(said)?;
    TcpListener::from_std(socket).map_err(said)
}

/// Tells the supervisor that the service serves. Without a supervisor that wants to know there is nothing to tell.
pub(crate) fn ready() -> Result<(), String> {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let told = UnixDatagram::unbound().and_then(|socket| socket.send_to(b"READY=1\n", &path));
    told.map(drop).map_err(|e| format!("could not tell the supervisor: {e}"))
}
