"""What a derived series keeps of its source."""

from pydicom import Dataset
from pydicom.datadict import dictionary_VR
from pydicom.uid import MRImageStorage

from medsr_monai.data.dicom.attributes import CONTACTS, held_attributes


def test_persons_stay_known_but_not_where_they_can_be_reached():
    """Also within sequences; what identifies the patient is the source's."""
    header = Dataset()
    header.SOPClassUID = MRImageStorage
    header.PatientName, header.PatientID, header.PatientBirthDate, header.PatientSex = "Doe^Jane", "7", "19700101", "F"
    person = Dataset()
    person.InstitutionName = "Hospital"
    for inner in (header, person):
        for name in CONTACTS:
            if dictionary_VR(name) != "SQ":
                setattr(inner, name, "555 1234")
    header.ReferringPhysicianIdentificationSequence = [person]
    held = held_attributes([header])
    assert (held.PatientName, held.PatientID, held.PatientBirthDate, held.PatientSex) == (
        "Doe^Jane",
        "7",
        "19700101",
        "F",
    )
    (inner,) = held.ReferringPhysicianIdentificationSequence
    assert inner.InstitutionName == "Hospital"
    assert not [name for name in CONTACTS if name in held or name in inner] and "555" not in str(held)
    assert person.PersonAddress == "555 1234"  # the source is as it was
