#!/bin/sh
# Reads the fields of the output from the Swift sources of apple/container, and writes them with
# the line that each stands in: fields.sh CLONE > fields.tsv
#
# CLONE is a clone of https://github.com/apple/container with its tags. Columns: release, type,
# field, ? if it may be missing, file:line.
set -eu
clone=$1

show() {
    git -C "$clone" show "$1:Sources/$2" 2>/dev/null
}

# A struct's stored properties: RELEASE TYPE FILE [STRUCT]
fields() {
    show "$1" "$3" | awk -v release="$1" -v type="$2" -v file="$3" -v name="${4:-$2}" '
        BEGIN { begin = "(struct|enum) " name "[ :{]" }
        !inside && $0 ~ begin { inside = 1; depth = 0 }
        inside {
            line = $0
            sub(/\/\/.*/, "", line)
            # Stored properties stand one level below their type, and have no body.
            if (depth == 1 && line ~ /^ *(public |package |private )?(let|var) [a-zA-Z0-9]+:/ && line !~ /\{/) {
                match(line, /(let|var) [a-zA-Z0-9]+:/)
                field = substr(line, RSTART + 4, RLENGTH - 5)
                optional = line ~ /\?( =.*)?[ ,]*$/ ? "?" : ""
                print release "\t" type "\t" field "\t" optional "\t" file ":" NR
            }
            opened = gsub(/\{/, "{", line); closed = gsub(/\}/, "}", line)
            depth += opened - closed
            if (depth == 0 && closed) exit
        }'
}

# What a type writes that says so itself: RELEASE TYPE FILE
encoded() {
    show "$1" "$3" | awk -v release="$1" -v type="$2" -v file="$3" '
        /\.encode(IfPresent)?\(.*forKey: \./ {
            line = $0
            optional = line ~ /encodeIfPresent/ ? "?" : ""
            sub(/.*forKey: \./, "", line)
            sub(/[^a-zA-Z0-9].*/, "", line)
            print release "\t" type "\t" line "\t" optional "\t" file ":" NR
        }'
}

resource=ContainerResource
for release in 0.12.3 1.0.0 1.1.0 1.2.0 1.2.1 1.2.2; do
    container=$resource/Container
    fields $release Configuration $container/ContainerConfiguration.swift ContainerConfiguration
    fields $release Dns $container/ContainerConfiguration.swift DNSConfiguration
    fields $release Resources $container/ContainerConfiguration.swift Resources
    fields $release Filesystem $container/Filesystem.swift
    fields $release Process $container/ProcessConfiguration.swift ProcessConfiguration
    fields $release Rlimit $container/ProcessConfiguration.swift Rlimit
    fields $release PublishPort $container/PublishPort.swift
    fields $release PublishSocket $container/PublishSocket.swift
    fields $release Stats $container/ContainerStats.swift ContainerStats
    fields $release AttachmentConfiguration $resource/Network/AttachmentConfiguration.swift
    fields $release AttachmentOptions $resource/Network/AttachmentConfiguration.swift
    fields $release ImageDescription $resource/Image/ImageDescription.swift
    fields $release SystemStatus ContainerCommands/System/SystemStatus.swift PrintableStatus
    fields $release Version ContainerCommands/System/SystemVersion.swift VersionInfo
    encoded $release Attachment $resource/Network/Attachment.swift
    encoded $release NetworkConfiguration $resource/Network/NetworkConfiguration.swift
    case $release in
    0.*)
        fields $release Container ContainerCommands/Container/ContainerList.swift PrintableContainer
        fields $release Network ContainerCommands/Network/NetworkList.swift PrintableNetwork
        fields $release NetworkStatus $resource/Network/NetworkState.swift
        fields $release ListedImage ContainerCommands/Image/ImageList.swift PrintableImage
        fields $release Image $resource/Image/ImageDetail.swift ImageDetail
        fields $release Variant $resource/Image/ImageDetail.swift Variants
        fields $release Volume $resource/Volume/Volume.swift
        ;;
    *)
        encoded $release Container $container/ManagedContainer.swift
        fields $release ContainerStatus $container/ContainerStatus.swift
        encoded $release Network $resource/Network/NetworkResource.swift
        fields $release NetworkStatus $resource/Network/NetworkStatus.swift
        encoded $release Image $resource/Image/ImageResource.swift
        fields $release ImageConfiguration $resource/Image/ImageResource.swift
        fields $release Variant $resource/Image/ImageResource.swift
        encoded $release VolumeResource $resource/Volume/VolumeResource.swift
        encoded $release Volume $resource/Volume/VolumeConfiguration.swift
        ;;
    esac
done
