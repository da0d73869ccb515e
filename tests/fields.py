#!/usr/bin/env python3
"""Holds what extra fields and measures are read from against tshark, frame by frame.

usage: fields.py compare FIELDS_OF CORPUS [NAME...]    prints each frame and column that differ, then why where that is
                                                       known; exits with 1 where any difference is not known
       fields.py write CORPUS FOLDER NAME...           writes what tshark says of each capture to FOLDER/NAME.csv

FIELDS_OF  the built example `fields_of`.   CORPUS  a folder of captures.

Everything is of the outermost IP header. tshark gives all occurrences of a field in the order of the headers, so the first
is the outermost, and what is before the IP header shows by frame.protocols. `?` stands where tshark does not say.
"""
import collections, csv, io, os, subprocess, sys

COLUMNS = ("frame dscp ecn ttl icmp_type icmp_code inner_vlan mpls_label src_mac dst_mac interface fragment protocol"
           " tcp_flags ip_bytes transport_bytes payload_bytes").split()
FIELDS = """frame.number frame.protocols frame.interface_name frame.interface_id eth.src eth.dst sll.src.eth sll.ifindex
 vlan.id ieee8021ad.id mpls.label ip.dst ipv6.dst
 ip.dsfield.dscp ip.dsfield.ecn ip.ttl ip.proto ip.len ip.hdr_len ip.flags.mf ip.frag_offset
 ipv6.tclass.dscp ipv6.tclass.ecn ipv6.hlim ipv6.nxt ipv6.plen
 ipv6.hopopts.nxt ipv6.hopopts.len ipv6.routing.nxt ipv6.routing.len ipv6.dstopts.nxt ipv6.dstopts.len
 ipv6.fraghdr.nxt ipv6.fraghdr.offset ipv6.fraghdr.more
 icmp.type icmp.code icmpv6.type icmpv6.code tcp.flags tcp.hdr_len dccp.data_offset""".split()
OPTIONS = ["ip.defragment:FALSE", "ipv6.defragment:FALSE", "tcp.desegment_tcp_streams:FALSE", "ip.tso_support:TRUE"]
NO_MAC = "00:00:00:00:00:00"
EXTENSIONS = {0: "hopopts", 43: "routing", 60: "dstopts"}


def number(text):
    if text in ("True", "False"):
        return int(text == "True")
    return int(text, 0)


class Frame:
    """What tshark says of a frame."""

    def __init__(self, fields):
        self.fields = {name: value.split("|") if value else [] for name, value in fields.items()}

    def all(self, name):
        return self.fields[name]

    def text(self, name, without=""):
        return self.fields[name][0] if self.fields[name] else without

    def number(self, name, without=0):
        return number(self.fields[name][0]) if self.fields[name] else without


def read(capture):
    command = ["tshark", "-n", "-r", capture, "-T", "fields", "-E", "occurrence=a", "-E", "aggregator=|"]
    command += [word for option in OPTIONS for word in ("-o", option)]
    command += [word for field in FIELDS for word in ("-e", field)]
    run = subprocess.run(command, capture_output=True, text=True, errors="replace")
    for line in run.stdout.splitlines():
        yield Frame(dict(zip(FIELDS, line.split("\t"))))


def fragment(more, offset):
    return 2 if offset else more


def network(frame):
    """The values of an IPv4 header, or of an IPv6 header and what extends it."""
    values = {"dscp": frame.number("ip.dsfield.dscp"), "ecn": frame.number("ip.dsfield.ecn"), "ttl": frame.number("ip.ttl"),
              "protocol": frame.number("ip.proto"), "ip_bytes": frame.number("ip.len"),
              "fragment": fragment(frame.number("ip.flags.mf"), frame.number("ip.frag_offset"))}
    return values, values["ip_bytes"] - frame.number("ip.hdr_len")


def network6(frame):
    payload = frame.number("ipv6.plen")
    values = {"dscp": frame.number("ipv6.tclass.dscp"), "ecn": frame.number("ipv6.tclass.ecn"),
              "ttl": frame.number("ipv6.hlim"), "ip_bytes": payload + 40, "fragment": 0}
    following, seen = frame.number("ipv6.nxt"), {}
    while True:
        header = EXTENSIONS.get(following, "fraghdr" if following == 44 else None)
        at = seen.get(header, 0)
        if header is None or at >= len(frame.all(f"ipv6.{header}.nxt")):
            break
        seen[header] = at + 1
        following = number(frame.all(f"ipv6.{header}.nxt")[at])
        if header == "fraghdr":
            payload -= 8
            values["fragment"] |= fragment(number(frame.all("ipv6.fraghdr.more")[at]), number(frame.all("ipv6.fraghdr.offset")[at]))
            if values["fragment"] == 2:
                break
        else:
            payload -= (number(frame.all(f"ipv6.{header}.len")[at]) + 1) * 8
    values["protocol"] = following
    return values, payload


def header_length(frame, protocol):
    if protocol == 6:
        return frame.number("tcp.hdr_len", 20)
    if protocol == 33:
        return 4 * frame.number("dccp.data_offset", 3)
    return {1: 8, 58: 8, 17: 8, 136: 8, 132: 12}.get(protocol, 0)


def interface(frame):
    name = frame.text("frame.interface_name")
    if name in ("", "unknown") or frame.text("frame.interface_id") == "":
        # A pcapng section that names none; a pcap file knows no interfaces, but cooked frames have its number.
        return frame.text("frame.interface_id") or frame.text("sll.ifindex")
    return name


def vlan_tags(frame, protocols):
    left = {"vlan": list(frame.all("vlan.id")), "ieee8021ad": list(frame.all("ieee8021ad.id"))}
    return [number(left[name].pop(0)) for name in protocols if left.get(name)]


def row(frame):
    """The columns of a frame with an IP header; else its number, with `?` where tshark is not told what labels stand for."""
    protocols = frame.text("frame.protocols").split(":")
    first = next((at for at, name in enumerate(protocols) if name in ("ip", "ipv6")), None)
    # One that is cut off has no destination.
    if first is None or not frame.all(f"{protocols[first]}.dst"):
        return [frame.text("frame.number")] + ["?"] * ("mpls" in protocols)
    before = protocols[:first]
    values, transport = network(frame) if protocols[first] == "ip" else network6(frame)
    tags = vlan_tags(frame, before)
    labels = [number(label) for label in frame.all("mpls.label")] if "mpls" in before else []
    kind = {"eth": ("eth.src", "eth.dst"), "sll": ("sll.src.eth", None)}.get(protocols[0], (None, None))
    mac = [frame.text(name, NO_MAC) if name else NO_MAC for name in kind]
    protocol, has_start = values["protocol"], values["fragment"] < 2
    icmp = {1: "icmp", 58: "icmpv6"}.get(protocol) if has_start else None
    values |= {"frame": frame.text("frame.number"), "src_mac": mac[0], "dst_mac": mac[1], "interface": interface(frame),
               "inner_vlan": tags[1] if len(tags) > 1 else 0, "mpls_label": labels[0] if labels else 0,
               "icmp_type": frame.number(f"{icmp}.type") if icmp else 0,
               "icmp_code": frame.number(f"{icmp}.code") if icmp else 0,
               "tcp_flags": frame.number("tcp.flags") & 0xff if protocol == 6 and has_start else 0,
               "transport_bytes": transport,
               "payload_bytes": max(0, transport - (header_length(frame, protocol) if has_start else 0))}
    if protocols[first] == "ipv6" and frame.number("ipv6.plen") == 0:
        # What the length on the wire leaves: tshark does not say where the header is.
        values |= {"ip_bytes": "?", "transport_bytes": "?", "payload_bytes": "?"}
    return [str(values[column]) for column in COLUMNS]


def known(frame, mine, column):
    """Why a frame differs although both programs are right in their way; None where that is not known."""
    protocols = frame.text("frame.protocols").split(":")
    if column == "packet":
        if protocols[0] in ("chdlc", "ppi") and len(mine) == 1:
            return "the link type is not decoded"
    if column in ("src_mac", "dst_mac") and protocols[1] == "cfp":
        return "tshark has no field for the addresses before a FabricPath tag"
    if column == "tcp_flags" and frame.number("tcp.hdr_len", 20) < 20:
        return "tshark reads no further in a TCP header that claims less than 20 bytes"
    return None


def compare(example, corpus, names):
    total = unexplained = 0
    explained = collections.Counter()
    for name in names:
        run = subprocess.run([example, os.path.join(corpus, name)], capture_output=True, text=True)
        if run.returncode:
            print(f"{name}: left out: {run.stderr.strip()}")
            continue
        ours = list(csv.reader(io.StringIO(run.stdout)))[1:]
        frames = list(read(os.path.join(corpus, name)))
        theirs = [row(frame) for frame in frames]
        if len(ours) != len(theirs):
            print(f"{name}: {len(ours)} frames, tshark finds {len(theirs)}")
        for mine, other, frame in zip(ours, theirs, frames):
            total += 1
            if other[1:] == ["?"]:
                what = []
            elif len(mine) != len(other):
                what = [("packet", len(mine) > 1, len(other) > 1)]
            else:
                what = [(column, a, b) for column, a, b in zip(COLUMNS, mine, other) if a != b and b != "?"]
            for column, a, b in what:
                why = known(frame, mine, column)
                explained[f"{name} {column}: {why}"] += why is not None
                if why is None:
                    unexplained += 1
                    print(f"{name} frame {mine[0]} {column}: {a}, tshark says {b}")
    for why, count in sorted(explained.items()):
        if count:
            print(f"known: {why} ({count} frames)")
    print(f"{total} frames of {len(names)} captures, {unexplained} differences that are not known")
    return unexplained


def write(corpus, folder, names):
    os.makedirs(folder, exist_ok=True)
    for name in names:
        with open(os.path.join(folder, name + ".csv"), "w", newline="") as file:
            out = csv.writer(file, lineterminator="\n")
            out.writerow(COLUMNS)
            out.writerows(row(frame) for frame in read(os.path.join(corpus, name)))


def captures(corpus):
    return [name for name in sorted(os.listdir(corpus))
            if os.path.isfile(os.path.join(corpus, name)) and not name.endswith((".csv", ".txt", ".md"))]


def main(arguments):
    match arguments:
        case ["compare", example, corpus, *names]:
            return int(compare(example, corpus, names or captures(corpus)) > 0)
        case ["write", corpus, folder, *names] if names:
            write(corpus, folder, names)
            return 0
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
