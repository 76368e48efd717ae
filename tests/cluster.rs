//! The local cluster itself: networks, API server, full control plane.

use std::net::SocketAddr;
use std::time::Duration;

use atlas_tests::cluster::net::ClusterNet;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn a_cut_link_is_real_and_heals() {
    let net = ClusterNet::create("attest-net").await.unwrap();
    let (one, two) = (net.add_node().await.unwrap(), net.add_node().await.unwrap());
    let pod = one.add_pod("default/web").await.unwrap();
    let client = two.add_pod("default/client").await.unwrap();
    let address = SocketAddr::from((pod.ip, 8000));
    let listener = pod.netns.listen(address).await.unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"hello").await.unwrap();
        }
    });
    let read = |from: std::sync::Arc<atlas_tests::cluster::net::Netns>| async move {
        let mut text = String::new();
        from.connect(address).await?.read_to_string(&mut text).await?;
        std::io::Result::Ok(text)
    };
    assert_eq!(read(client.netns.clone()).await.unwrap(), "hello");
    assert_eq!(read(net.control_plane().clone()).await.unwrap(), "hello");
    one.link_down().await.unwrap();
    let cut = tokio::time::timeout(Duration::from_millis(500), read(client.netns.clone())).await;
    assert!(!matches!(cut, Ok(Ok(_))), "the link is down, yet the pod answered");
    assert_eq!(read(one.netns().clone()).await.unwrap(), "hello", "the node still reaches its own pod");
    one.link_up().await.unwrap();
    assert_eq!(read(client.netns.clone()).await.unwrap(), "hello");
    let names = [net.control_plane().path(), one.netns().path(), pod.netns_path.clone()];
    drop((pod, client, one, two, net));
    for name in names {
        assert!(!name.exists(), "{} is left behind", name.display());
    }
}
