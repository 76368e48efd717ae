//! A cable between the gateway and an engine's port that can be cut: then no byte passes and no connection ends.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
};

/// Delay of a connection that is opened while the cable is cut: it is accepted and hears nothing.
const LOOK: Duration = Duration::from_millis(5);

/// A cable; closed when dropped.
pub struct Wire {
    /// Where the gateway connects to.
    pub address: SocketAddr,
    cut: watch::Sender<bool>,
    _tasks: JoinSet<()>,
}

impl Wire {
    /// Lays one to this address.
    ///
    /// # Errors
    ///
    /// No port is free.
    pub async fn lay(target: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (cut, state) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut pairs = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                while pairs.try_join_next().is_some() {}
                let state = state.clone();
                pairs.spawn(async move {
                    whole(&mut state.clone()).await;
                    // A target that refuses closes the near side, as the network's own refusal would.
                    if let Ok(far) = TcpStream::connect(target).await {
                        join(near, far, state).await;
                    }
                });
            }
        });
        Ok(Self { address, cut, _tasks: tasks })
    }

    /// Cuts it, or mends it again.
    pub fn set_cut(&self, cut: bool) {
        self.cut.send_replace(cut);
    }
}

async fn whole(state: &mut watch::Receiver<bool>) {
    while *state.borrow_and_update() {
        if state.changed().await.is_err() {
            tokio::time::sleep(LOOK).await;
        }
    }
}

async fn join(near: TcpStream, far: TcpStream, state: watch::Receiver<bool>) {
    let (_, _) = (near.set_nodelay(true), far.set_nodelay(true));
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    tokio::select! {
        () = pass(near_in, far_out, state.clone()) => {}
        () = pass(far_in, near_out, state) => {}
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut state: watch::Receiver<bool>) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        whole(&mut state).await;
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            // What arrives from now on waits in the cut cable.
            _ = state.changed() => continue,
        };
        let Ok(read @ 1..) = read else { return };
        whole(&mut state).await;
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
