//! The cluster's DNS: A records of Services with a ClusterIP, and the model file server's name.
//!
//! Names are `NAME.NS.svc` and `NAME.NS.svc.cluster.local`; everything else does not exist, since nothing leads out
//! of the cluster. It deliberately answers neither headless Services nor pods: the project finds those through
//! EndpointSlices.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, RwLock};

use futures::{StreamExt as _, TryStreamExt as _};
use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record, RecordType};
use k8s_openapi::api::core::v1::Service;
use kube::api::Api;
use kube::runtime::watcher::{self, Event, watcher};
use tokio::net::UdpSocket;

use super::error::ClusterError;
use super::net::CONTROL_PLANE_IP;
use super::netns::Netns;

/// The name of the model file server inside the cluster.
pub const MODELS_HOST: &str = "models.atlas.test";

/// Short, since ClusterIPs come and go with the tests.
const TTL_SECONDS: u32 = 1;

/// Longest query over UDP.
const MAX_QUERY_BYTES: usize = 4096;

/// Addresses by name, in lower case, without the final dot and without the cluster's domain.
#[derive(Debug, Default)]
struct Names(HashMap<String, Ipv4Addr>);

/// Answers until it is dropped.
pub(super) async fn serve(
    netns: &Netns,
    client: kube::Client,
) -> Result<impl Future<Output = ()> + Send + 'static, ClusterError> {
    let address = SocketAddr::from((CONTROL_PLANE_IP, 53));
    let socket =
        netns.udp(address).await.map_err(ClusterError::io(format!("listen on {address} for DNS")))?;
    let names = Arc::new(RwLock::new(Names::default()));
    Ok(async move {
        tokio::join!(follow_services(client, names.clone()), answer_queries(socket, names));
    })
}

async fn follow_services(client: kube::Client, names: Arc<RwLock<Names>>) {
    let services = watcher(Api::<Service>::all(client), watcher::Config::default());
    let mut services = services.into_stream().boxed();
    let mut listed = HashMap::new();
    loop {
        let event = match services.try_next().await {
            Ok(Some(event)) => event,
            Ok(None) => return,
            // The watcher tries again by itself at the next poll.
            Err(error) => {
                tracing::debug!(%error, "the DNS server's watch of Services broke");
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                continue;
            }
        };
        match event {
            Event::Init => listed.clear(),
            Event::InitApply(service) => listed.extend(name_of(&service)),
            Event::InitDone => write(&names).0 = std::mem::take(&mut listed),
            Event::Apply(service) => write(&names).0.extend(name_of(&service)),
            Event::Delete(service) => {
                if let Some((name, _)) = name_of(&service) {
                    write(&names).0.remove(&name);
                }
            }
        }
    }
}

fn write(names: &RwLock<Names>) -> std::sync::RwLockWriteGuard<'_, Names> {
    // Nothing panics while it holds the lock; were it so, the map would still be whole.
    names.write().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn name_of(service: &Service) -> Option<(String, Ipv4Addr)> {
    let (name, namespace) = (service.metadata.name.as_ref()?, service.metadata.namespace.as_ref()?);
    let address = service.spec.as_ref()?.cluster_ip.as_ref()?.parse().ok()?;
    Some((format!("{name}.{namespace}.svc"), address))
}

async fn answer_queries(socket: UdpSocket, names: Arc<RwLock<Names>>) {
    let mut buffer = vec![0; MAX_QUERY_BYTES];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
        // What is no DNS message gets no answer.
        let Ok(query) = Message::from_vec(&buffer[..length]) else { continue };
        let response = {
            let names = names.read().unwrap_or_else(std::sync::PoisonError::into_inner);
            answer(&query, &names)
        };
        if let Ok(bytes) = response.to_vec() {
            // Lost answers are the client's to ask for again.
            let _ = socket.send_to(&bytes, from).await;
        }
    }
}

/// The answer to one message.
fn answer(query: &Message, names: &Names) -> Message {
    let mut response = Message::new(query.metadata.id, MessageType::Response, query.metadata.op_code);
    response.metadata.recursion_desired = query.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response.metadata.authoritative = true;
    let (OpCode::Query, [question]) = (query.metadata.op_code, query.queries.as_slice()) else {
        response.metadata.response_code = ResponseCode::NotImp;
        return response;
    };
    response.add_query(question.clone());
    match (names.find(&question.name().to_ascii()), question.query_type()) {
        (Some(address), RecordType::A) => {
            let record = Record::from_rdata(question.name().clone(), TTL_SECONDS, RData::A(A(address)));
            response.add_answer(record);
        }
        // The name is there, but has nothing of the kind (AAAA).
        (Some(_), _) => {}
        (None, _) => response.metadata.response_code = ResponseCode::NXDomain,
    }
    response
}

impl Names {
    fn find(&self, asked: &str) -> Option<Ipv4Addr> {
        let asked = asked.to_ascii_lowercase();
        let name = asked.trim_end_matches('.');
        if name == MODELS_HOST {
            return Some(CONTROL_PLANE_IP);
        }
        self.0.get(name.strip_suffix(".cluster.local").unwrap_or(name)).copied()
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Query;
    use hickory_proto::rr::Name;

    use super::*;

    #[test]
    fn services_and_the_model_server_have_names_and_nothing_else_has() {
        let names = Names(HashMap::from([("code.atlas.svc".to_owned(), Ipv4Addr::new(10, 78, 0, 9))]));
        let service = Some("10.78.0.9");
        for (name, kind, code, address) in [
            ("code.atlas.svc.", RecordType::A, ResponseCode::NoError, service),
            ("Code.Atlas.SVC.cluster.local.", RecordType::A, ResponseCode::NoError, service),
            ("models.atlas.test.", RecordType::A, ResponseCode::NoError, Some("10.76.0.1")),
            ("code.atlas.svc.", RecordType::AAAA, ResponseCode::NoError, None),
            ("code.other.svc.", RecordType::A, ResponseCode::NXDomain, None),
            ("example.com.", RecordType::A, ResponseCode::NXDomain, None),
        ] {
            let mut query = Message::new(7, MessageType::Query, OpCode::Query);
            query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
            let response = answer(&query, &names);
            let answers: Vec<String> =
                response.answers.iter().map(|record| record.data.to_string()).collect();
            assert_eq!((response.metadata.id, response.metadata.response_code), (7, code), "{name} {kind}");
            assert_eq!(answers, address.into_iter().collect::<Vec<_>>(), "{name} {kind}");
        }
    }
}
