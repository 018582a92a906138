//! Who made a chain, by its name or its table's, and what that program can be told.

use super::reach::SourceNat;
use super::rules::Tool;

/// A program that makes rules.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Owner {
    pub name: &'static str,
    /// Its chains in iptables' table nat: one name, or with `*` every name that begins so.
    chains: &'static [&'static str],
    /// Its tables in nftables.
    tables: &'static [&'static str],
    /// How it is told to choose ports at random, if it can be.
    pub random_fully: Option<&'static str>,
    /// A command that does so.
    pub command: Option<&'static [&'static str]>,
    /// How destinations are exempted.
    pub exempt: Option<&'static str>,
}

/// A row without a setting.
const NONE: Owner = Owner { name: "", chains: &[], tables: &[], random_fully: None, command: None, exempt: None };

/// The first that fits is meant. What stands here is in the program's documentation or sources, which are named.
const OWNERS: &[Owner] = &[
    Owner { name: "kube-router", chains: &["KUBE-ROUTER-*"], ..NONE },
    // kubernetes: pkg/proxy/iptables/proxier.go asks iptables (HasRandomFully), which means 1.6.2 or later;
    // pkg/proxy/nftables/proxier.go always masquerades fully-random.
    Owner {
        name: "kube-proxy",
        chains: &["KUBE-*"],
        tables: &["kube-proxy"],
        random_fully: Some(
            "kube-proxy adds --random-fully by itself where the iptables it runs knows the option (1.6.2 or later): \
             update kube-proxy or its iptables, or use its nftables mode",
        ),
        ..NONE
    },
    // flannel: pkg/trafficmngr/iptables/iptables.go asks iptables likewise; Documentation/configuration.md, --ip-masq.
    Owner {
        name: "flannel",
        chains: &["FLANNEL-POSTRTG"],
        tables: &["flannel-ipv4", "flannel-ipv6"],
        random_fully: Some(
            "flannel adds --random-fully by itself where the iptables it runs knows the option (1.6.2 or later): update \
             flannel or its iptables",
        ),
        exempt: Some("run flanneld without --ip-masq, and ip-masq-agent with these in nonMasqueradeCIDRs"),
        ..NONE
    },
    // Calico: FelixConfiguration, featureDetectOverride; "Configure outgoing NAT", on pools that only exempt.
    Owner {
        name: "calico",
        chains: &["cali-*"],
        tables: &["calico"],
        random_fully: Some(
            "Felix adds --random-fully by itself where it finds that iptables knows the option (1.6.2 or later): update \
             calico-node, and take MASQFullyRandom=false and SNATFullyRandom=false out of featureDetectOverride in \
             FelixConfiguration if they are there",
        ),
        exempt: Some("make an IPPool with disabled: true that covers them; Felix translates toward no pool"),
        ..NONE
    },
    // Cilium: cilium-agent --iptables-random-fully and --ipv4-native-routing-cidr; the same in the Helm chart's values.
    Owner {
        name: "cilium",
        chains: &["CILIUM_*", "OLD_CILIUM_*"],
        random_fully: Some(
            "set iptables-random-fully: \"true\" in the ConfigMap cilium-config (Helm: iptablesRandomFully=true) and \
             restart the agents",
        ),
        exempt: Some("set ipv4-native-routing-cidr (Helm: ipv4NativeRoutingCIDR) to a range that covers them"),
        ..NONE
    },
    // amazon-vpc-cni-k8s: README.md, AWS_VPC_K8S_CNI_RANDOMIZESNAT and AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS.
    Owner {
        name: "amazon-vpc-cni",
        chains: &["AWS-SNAT-CHAIN-*"],
        random_fully: Some("set AWS_VPC_K8S_CNI_RANDOMIZESNAT=prng on the DaemonSet aws-node"),
        command: Some(&[
            "kubectl",
            "-n",
            "kube-system",
            "set",
            "env",
            "daemonset/aws-node",
            "AWS_VPC_K8S_CNI_RANDOMIZESNAT=prng",
        ]),
        exempt: Some("name them in AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS on the DaemonSet aws-node"),
        ..NONE
    },
    // ip-masq-agent: README.md, nonMasqueradeCIDRs.
    Owner {
        name: "ip-masq-agent",
        chains: &["IP-MASQ-AGENT*"],
        exempt: Some("name them in nonMasqueradeCIDRs in the ConfigMap ip-masq-agent"),
        ..NONE
    },
    // Docker: bridge driver option com.docker.network.bridge.enable_ip_masquerade; tables of the nftables backend.
    Owner {
        name: "docker",
        chains: &["DOCKER*"],
        tables: &["docker-bridges"],
        exempt: Some(
            "make the network with -o com.docker.network.bridge.enable_ip_masquerade=false and translate its other \
             destinations by a rule of your own",
        ),
        ..NONE
    },
    // libvirt: "Network XML format", <forward mode="route"/>.
    Owner {
        name: "libvirt",
        chains: &["LIBVIRT_*"],
        tables: &["libvirt_network"],
        exempt: Some("give the network <forward mode=\"route\"/>, and routes back to it"),
        ..NONE
    },
    // containernetworking/plugins: pkg/ip/ipmasq_nftables_linux.go, utils.FormatChainName; the bridge plugin's ipMasq.
    Owner {
        name: "CNI plugins",
        chains: &["CNI-*"],
        tables: &["cni_plugins_masquerade"],
        exempt: Some("set \"ipMasq\": false in the network's CNI configuration and translate by a rule of your own"),
        ..NONE
    },
    Owner { name: "netavark", chains: &["NETAVARK-*"], tables: &["netavark"], ..NONE },
    Owner { name: "firewalld", tables: &["firewalld"], ..NONE },
];

/// How a program is told to exempt destinations, if it can be.
pub(super) fn exempt(name: &str) -> Option<&'static str> {
    OWNERS.iter().find(|owner| owner.name == name)?.exempt
}

/// Who made a rule. `docker` says whether the table has a chain of docker's, whose masquerading stands in POSTROUTING
/// itself and is known by its bridge.
pub(super) fn owner(rule: &SourceNat<'_>, docker: bool) -> Option<&'static Owner> {
    let fits = |pattern: &&str| match pattern.strip_suffix('*') {
        Some(beginning) => rule.chain.starts_with(beginning),
        None => *pattern == rule.chain,
    };
    let by_name = OWNERS.iter().find(|owner| match rule.tool {
        Tool::Nft => owner.tables.contains(&rule.table),
        Tool::IptablesNft | Tool::IptablesLegacy => owner.chains.iter().any(fits),
    });
    by_name.or_else(|| {
        let dockers = docker && rule.tool != Tool::Nft && rule.chain == "POSTROUTING" && off_bridge(&rule.rule.text);
        OWNERS.iter().find(|owner| dockers && owner.name == "docker")
    })
}

/// Whether a rule takes what does not leave by one of docker's bridges: `docker0`, or `br-` and the first twelve digits of
/// a network's id.
fn off_bridge(text: &str) -> bool {
    let Some((_, rest)) = text.split_once(" ! -o ") else { return false };
    let bridge = rest.split(' ').next().unwrap_or_default();
    let is_id = |id: &str| id.len() == 12 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    bridge == "docker0" || bridge.strip_prefix("br-").is_some_and(is_id)
}

/// Whether a chain of docker's is among these.
pub(super) fn has_docker<'a>(mut chains: impl Iterator<Item = &'a str>) -> bool {
    chains.any(|chain| chain == "DOCKER")
}
