# A DICOM server as Debian packages it, its index in SQLite. It accepts associations from anybody on the lab's
# network, and sends what the client asks for to the client.
apt-get -q -y install orthanc
cat >/etc/orthanc/lab.json <<'END'
{
  "Name": "lab",
  "DicomServerEnabled": true,
  "DicomAet": "ORTHANC",
  "DicomPort": 4242,
  "DicomAlwaysAllowEcho": true,
  "DicomAlwaysAllowStore": true,
  "DicomAlwaysAllowFind": true,
  "DicomAlwaysAllowGet": true,
  "DicomAlwaysAllowMove": true,
  "DicomModalities": { "client": ["CLIENT", "CLIENT_ADDRESS", 11112] },
  "DicomScuTimeout": 0,
  "SyncStorageArea": true,
  "HttpServerEnabled": false,
  "OverwriteInstances": true
}
END
sed -i "s/CLIENT_ADDRESS/$CLIENT_ADDRESS/" /etc/orthanc/lab.json
